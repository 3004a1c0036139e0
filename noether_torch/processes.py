"""Exchange values between the processes of `torch.distributed`, over connections of our own."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed

from noether_core.errors import MissingDependencyError, NoetherError, ProcessesMissingError
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.partial import Vector

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_PIECE = 16 << 20  # bytes; and less where many processes send at once
_ROUND = 256 << 20


def group_exchange(
    process_group: torch.distributed.ProcessGroup | None = None, *, time_limit: float = 30.0
) -> Exchange:
    """Return what talks to the other processes of a group; all of them make this call.

    It connects the processes anew, with gloo, for what it sends is in host memory. It never meets a collective of the user's,
    whatever the backend of the user's group, and on whatever thread.

    Args:
        process_group: of which processes; None for all.
        time_limit: seconds to wait for another process, each time.

    Raises:
        NoetherError: if there is no such group, or this process is not in it.
        ProcessesMissingError: if some process of the group does not make this call within the time limit.
    """
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        raise MissingDependencyError(
            f"torch {torch.__version__} was built without torch.distributed's gloo, over which the processes exchange what they"
            " track: install a build with it, or track in one process alone with `processes=1`"
        )
    if not torch.distributed.is_initialized():
        raise NoetherError(
            "torch.distributed is not initialized, so there are no processes to exchange with: call"
            " torch.distributed.init_process_group before the `Run` is made, or leave out `process_group`"
        )
    from noether_torch.rendezvous import Rendezvous

    index = _index_in(process_group)
    if index < 0:
        raise NoetherError(
            f"process {torch.distributed.get_rank()} is not in the process group {process_group!r}; make the `Run` only in its"
            " members, or with `processes=1` here"
        )
    count = torch.distributed.get_world_size(process_group)
    group = process_group if process_group is not None else torch.distributed.group.WORLD
    assert group is not None
    return GroupExchange(Rendezvous(_store(group), index, count, time_limit, _host(group)))


def _index_in(process_group: torch.distributed.ProcessGroup | None) -> int:
    try:
        return torch.distributed.get_rank(process_group)
    except ValueError as error:
        raise NoetherError(
            f"{process_group!r:.120} is no process group of torch.distributed, or one that was destroyed; give what"
            " torch.distributed.new_group or a mesh's get_group returned, or leave out `process_group` for all processes"
        ) from error


def _store(group: torch.distributed.ProcessGroup) -> Store:
    """Return the store through which a group's processes found each other."""
    try:
        return group.get_group_store()
    except (AttributeError, RuntimeError) as error:
        raise NoetherError(
            f"the process group {group!r} has no store through which its processes could agree ({error}); initialize"
            " torch.distributed with a store or an address (env://, tcp://, file://), or track with `processes=1`"
        ) from error


def _host(group: torch.distributed.ProcessGroup) -> int | None:
    """Return which process of the group holds the store: the first of all, if it is in the group, unless torchrun holds it."""
    ranks = torch.distributed.get_process_group_ranks(group)
    is_agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return ranks.index(0) if 0 in ranks and not is_agents else None


class GroupExchange:
    """Exchange over gloo; see `Exchange`, and `group_exchange`, which makes it."""

    def __init__(self, rendezvous: Any) -> None:
        self.index: int = rendezvous.index
        self.count: int = rendezvous.count
        self._rendezvous = rendezvous
        self._group: Any = None  # None once a collective has failed: gloo closes its connections then
        self.arrive("start tracking")

    def arrive(self, what: str) -> None:
        """Wait until all processes are here; connect them anew if that is needed."""
        if not self._rendezvous.arrive(what, renew=self._group is None):
            return
        self._group = None
        try:
            self._group = self._rendezvous.connect(self._connected)
        except ProcessesMissingError as error:
            raise self._rendezvous.lost(error) from error

    def _connected(self, store: Store) -> Any:
        from torch.distributed.distributed_c10d import ProcessGroupGloo

        limit = timedelta(seconds=self._rendezvous.time_limit)
        return ProcessGroupGloo(store, self.index, self.count, limit)

    def all_reduce_sum(self, values: Vector) -> Vector:
        """Return the sum of the processes' vectors."""
        return self._all_reduced(np.array(values, np.int64), torch.distributed.ReduceOp.SUM)

    def all_reduce_max(self, values: Vector) -> Vector:
        """Return the greatest of the processes' vectors."""
        return self._all_reduced(np.array(values, np.int64), torch.distributed.ReduceOp.MAX)

    def all_gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of each process: a sum in which each fills its own place."""
        ends = np.cumsum(self._lengths(data))
        whole = np.zeros(ends[-1], np.uint8)
        whole[ends[self.index] - len(data) : ends[self.index]] = np.frombuffer(data, np.uint8)
        whole = self._all_reduced(whole, torch.distributed.ReduceOp.SUM)
        return [part.tobytes() for part in np.split(whole, ends[:-1])]

    def gather_to_main(self, data: bytes) -> list[bytes] | None:
        """Return the bytes of each process on the main one; it takes a piece of each of them, then the next one of each."""
        lengths = self._lengths(data)
        size = max(1 << 16, min(_PIECE, _ROUND // self.count))
        gathered = [bytearray() for _ in lengths]
        for start in range(0, int(lengths.max()), size):
            for sender in range(1, self.count):
                length = min(int(lengths[sender]) - start, size)
                if length > 0 and self.index == sender:
                    self._send(data[start : start + length])
                elif length > 0 and self.index == 0:
                    gathered[sender] += self._received(sender, length)
            self._lengths(b"")  # nobody goes on before the main process has all pieces
        return None if self.index else [data, *map(bytes, gathered[1:])]

    def close(self) -> None:
        """Close our connections."""
        self._group = None
        self._rendezvous.close()

    def _send(self, data: bytes) -> None:
        piece = torch.from_numpy(np.frombuffer(data, np.uint8).copy())
        self._wait(lambda group: group.send([piece], 0, 0))

    def _received(self, sender: int, length: int) -> bytes:
        piece = torch.empty(length, dtype=torch.uint8)
        self._wait(lambda group: group.recv([piece], sender, 0))
        return piece.numpy().tobytes()

    def _lengths(self, data: bytes) -> Vector:
        lengths = np.zeros(self.count, np.int64)
        lengths[self.index] = len(data)
        return self.all_reduce_sum(lengths)

    def _all_reduced(self, values: np.ndarray[Any, Any], reduction: Any) -> np.ndarray[Any, Any]:
        """Return an array of ours after one collective, which changes it in place."""
        if values.size:
            options = torch.distributed.AllreduceOptions()
            options.reduceOp = reduction
            tensor = torch.from_numpy(values)
            self._wait(lambda group: group.allreduce([tensor], options))
        return values

    def _wait(self, start: Callable[[Any], Any]) -> None:
        """Make a collective, and wait for its end.

        Raises:
            ProcessesMissingError: if it fails.
        """
        if self._group is None:
            raise NoetherError(
                "the processes are not connected, for the last exchange failed or was closed; arrive first"
            )
        try:
            start(self._group).wait()
        except RuntimeError as error:
            self._group = None
            raise self._rendezvous.lost(error) from error
