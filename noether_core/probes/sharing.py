"""Share tasks among threads that last no longer than the call: a fork, or the interpreter's end, meets none of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from threading import Thread
from typing import TypeVar

MOST_THREADS = 8  # more than these wait for Python's lock rather than for NumPy

T = TypeVar("T")


def share(tasks: Iterable[T], work: Callable[[Iterator[T]], None], threads: int) -> None:
    """Let `work` do tasks in this thread, and in others at the same time; return when all are done.

    Args:
        tasks: what is to be done; it is read here, before.
        work: is called in each thread, with an iterator of tasks. Each task goes to one of the calls.
        threads: how many may work, this one included. Where the system starts fewer, fewer do.

    Raises:
        BaseException: the first that a call raised; the others then get no more tasks, and are waited for.

    >>> found = {}
    >>> share([1, 2, 3], lambda tasks: found.update({task: task**2 for task in tasks}), threads=2)
    >>> sorted(found.items())
    [(1, 1), (2, 4), (3, 9)]
    """
    left = deque(tasks)
    failures: list[BaseException] = []

    def do() -> None:
        try:
            work(_taken(left))
        except BaseException as failure:
            left.clear()
            failures.append(failure)

    others = []
    for _ in range(min(threads, MOST_THREADS, len(left)) - 1):
        other = Thread(target=do, name="noether measuring", daemon=True)
        try:
            other.start()
        except RuntimeError:  # there are as many threads as the system allows
            break
        others.append(other)
    do()
    for other in others:
        other.join()
    if failures:
        raise failures.pop(0)


def _taken(left: deque[T]) -> Iterator[T]:
    while True:
        try:
            yield left.popleft()
        except IndexError:
            return
