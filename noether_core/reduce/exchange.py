"""Say what a run needs of the other processes of a training: to be there, to add, to find the greatest, and to gather."""

from __future__ import annotations

from typing import Protocol

from noether_core.reduce.partial import Vector

TIME_LIMIT = 30.0  # seconds that a process waits for the others, by default


class Exchange(Protocol):
    """Talk to the run's other processes; all of them make the same calls in the same order.

    The front-ends' are made of the frameworks' own collectives; `noether_core.reduce.threads` has one of threads.

    Attributes:
        index: this process's number, from 0; 0 is the main process, which alone writes the log and the arrays.
        count: how many processes there are.
    """

    index: int
    count: int

    def arrive(self, what: str) -> None:
        """Wait until all processes are here, at most the time limit. All that arrive end alike, whatever the timing.

        Args:
            what: what they meet for, for the message.

        Raises:
            ProcessesMissingError: if some are not here in time; it names them. A late one gets it too. The next arrival of all
                works again.
        """

    def all_reduce_sum(self, values: Vector) -> Vector:
        """Return the sum of the processes' int64 vectors, of one length, on each of them."""

    def all_reduce_max(self, values: Vector) -> Vector:
        """Return the greatest of the processes' int64 vectors, element by element, on each of them."""

    def all_gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of each process, of any lengths, on each of them."""

    def gather_to_main(self, data: bytes) -> list[bytes] | None:
        """Return the bytes of each process on the main one, and None on the others; they travel in pieces of bounded size."""

    def close(self) -> None:
        """Let go of what was opened; no call follows."""
