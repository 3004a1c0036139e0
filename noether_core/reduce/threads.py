"""Let threads of one process be the processes of a run: to test and to simulate what many of them do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np

from noether_core.errors import ProcessesMissingError
from noether_core.reduce.partial import Vector

_Result = TypeVar("_Result")


class ThreadExchange:
    """Exchange with the other threads of a group; see `thread_exchanges`, which makes it, and `Exchange`.

    Attributes:
        calls: the names of the calls made, in order.
    """

    def __init__(self, index: int, group: _Group) -> None:
        self.index = index
        self.count = group.count
        self.calls: list[str] = []
        self._group = group

    def arrive(self, what: str) -> None:
        """Wait until all threads are here."""
        self.calls.append("arrive")
        missing = self._group.arrive(self.index)
        if missing:
            raise ProcessesMissingError(
                f"of {self.count} processes {', '.join(map(str, missing))} did not come within"
                f" {self._group.time_limit:g} s to {what}",
                missing,
            )

    def all_reduce_sum(self, values: Vector) -> Vector:
        """Return the sum of all threads' vectors."""
        return self._reduced("sum", values, np.sum)

    def all_reduce_max(self, values: Vector) -> Vector:
        """Return the greatest of all threads' vectors."""
        return self._reduced("max", values, np.max)

    def all_gather(self, data: bytes) -> list[bytes]:
        """Return the bytes of all threads."""
        self.calls.append("all_gather")
        return self._group.meet(self.index, data, list)

    def gather_to_main(self, data: bytes) -> list[bytes] | None:
        """Return the bytes of all threads on the first one."""
        self.calls.append("gather")
        gathered = self._group.meet(self.index, data, list)
        return None if self.index else gathered

    def close(self) -> None:
        """Do nothing."""

    def _reduced(self, name: str, values: Vector, reduction: Callable[..., Any]) -> Vector:
        self.calls.append(name)

        def reduced(vectors: Sequence[Vector]) -> Vector:
            if len({vector.shape for vector in vectors}) > 1:
                raise ValueError(f"the processes' vectors have the shapes {[vector.shape for vector in vectors]}")
            return np.asarray(reduction(np.stack(vectors), axis=0))

        return self._group.meet(self.index, values, reduced)


class _Group:
    """Hold what the threads of a group share: a round of values at a time."""

    def __init__(self, count: int, time_limit: float) -> None:
        self.count, self.time_limit = count, time_limit
        self._changed = threading.Condition()
        self._given: dict[int, Any] = {}
        self._results: dict[int, Any] = {}  # by the number of the round
        self._round = 0
        self._verdicts: dict[int, tuple[int, ...]] = {}  # who was missing, by the number of the arrival
        self._arrived: dict[int, set[int]] = {}
        self._arrivals = [0] * count

    def arrive(self, index: int) -> tuple[int, ...]:
        with self._changed:
            number = self._arrivals[index]
            self._arrivals[index] += 1
            here = self._arrived.setdefault(number, set())
            here.add(index)
            if len(here) == self.count:
                self._verdicts.setdefault(number, ())
                self._changed.notify_all()
            if not self._changed.wait_for(lambda: number in self._verdicts, self.time_limit):
                self._verdicts[number] = tuple(sorted({*range(self.count)} - here))
                self._changed.notify_all()
            return self._verdicts[number]

    def meet(self, index: int, value: Any, reduction: Callable[[list[Any]], _Result]) -> _Result:
        """Give a value, and return what the reduction makes of the values of all, in order."""
        with self._changed:
            number = self._round
            self._given[index] = value
            if len(self._given) == self.count:
                given = [self._given[at] for at in range(self.count)]
                self._given, self._round = {}, number + 1
                try:
                    self._results = {number: (reduction(given), None)}
                except Exception as error:
                    self._results = {number: (None, error)}
                self._changed.notify_all()
            elif not self._changed.wait_for(lambda: number in self._results, self.time_limit):
                raise ProcessesMissingError(f"of {self.count} threads {len(self._given)} came to a collective")
            result, raised = self._results[number]
        if raised is not None:
            raise raised
        return result  # type: ignore[no-any-return]


def thread_exchanges(count: int, *, time_limit: float = 30.0) -> list[ThreadExchange]:
    """Return exchanges for so many threads, each to be used by one of them.

    Args:
        count: how many.
        time_limit: seconds that one waits for the others.
    """
    group = _Group(count, time_limit)
    return [ThreadExchange(index, group) for index in range(count)]


def run_threads(count: int, body: Callable[[ThreadExchange], _Result], *, time_limit: float = 30.0) -> list[_Result]:
    """Return what `body` returns on each of so many threads, given an exchange with the others; raise the first error."""
    exchanges = thread_exchanges(count, time_limit=time_limit)
    results: list[Any] = [None] * count
    errors: list[tuple[int, BaseException]] = []

    def work(exchange: ThreadExchange) -> None:
        try:
            results[exchange.index] = body(exchange)
        except BaseException as error:
            errors.append((exchange.index, error))

    threads = [threading.Thread(target=work, args=(exchange,), daemon=True) for exchange in exchanges]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0][1]
    return results
