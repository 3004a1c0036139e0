"""Say what a run needs of the other processes of a training: to be there, to add, to find the greatest, and to gather."""

from __future__ import annotations

from typing import Any, Protocol, TypeGuard

from noether_core.errors import NoetherError
from noether_core.reduce.partial import Vector

_METHODS = ("index", "count", "arrive", "all_reduce_sum", "all_reduce_max", "all_gather", "gather_to_main", "close")
TIME_LIMIT = 30.0  # seconds that a process waits for the others, by default
_LONGEST = 1e9  # seconds, for which every wait can be told to wait


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


def is_exchange(given: Any, owner: str, name: str = "the framework") -> TypeGuard[Exchange]:
    """Tell whether the argument `processes` is an exchange; else it is None, or 1 for this process alone.

    Args:
        given: the argument.
        owner: whose it is, for the message.
        name: what knows of the other processes.

    Raises:
        NoetherError: if it is neither.
    """
    if given is None or (type(given) is int and given == 1):
        return False
    if isinstance(given, bool | int | float | str) or not all(hasattr(given, name) for name in _METHODS):
        raise NoetherError(
            f"{owner} got processes={given!r:.80}; expected 1, to track what this process has alone, None, for all that {name}"
            " was told of, or an Exchange"
        )
    return True


def require_time_limit(time_limit: Any, owner: str) -> None:
    """Raise `NoetherError` for what is no time to wait."""
    if isinstance(time_limit, bool) or not isinstance(time_limit, int | float) or not 0 < time_limit <= _LONGEST:
        raise NoetherError(f"{owner} got time_limit={time_limit!r:.80}; expected seconds, more than 0 and at most 1e9")
