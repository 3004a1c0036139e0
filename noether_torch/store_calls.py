"""Call a torch `Store` on a thread: a call to a `TCPStore` whose host is stopped hangs far beyond its timeout."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from queue import SimpleQueue
from typing import Any, TypeVar

from torch.distributed.distributed_c10d import Store

_Result = TypeVar("_Result")
_Call = tuple["Future[Any]", Callable[[Store], Any]]


class StoreCaller:
    """Make calls to a store in order, on a daemon thread and a connection of its own, as long as this object lives.

    Args:
        store: is cloned, which connects anew.
        time_limit: seconds until a call fails, if the store's host goes on.
    """

    def __init__(self, store: Store, time_limit: float) -> None:
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        threading.Thread(target=_make_calls, args=(store, time_limit, self._calls), daemon=True).start()
        self.close = weakref.finalize(self, self._calls.put, None)  # ends the thread once its calls are made

    def call(self, function: Callable[[Store], _Result]) -> Future[_Result]:
        """Return the coming result of a function of the store."""
        future: Future[_Result] = Future()
        self._calls.put((future, function))
        return future


def _make_calls(store: Store, time_limit: float, calls: SimpleQueue[_Call | None]) -> None:
    client: Any = None
    while (call := calls.get()) is not None:
        future, function = call
        try:
            if client is None:
                client = store.clone()  # type: ignore[attr-defined]
                client.set_timeout(timedelta(seconds=time_limit))
            future.set_result(function(client))
        except BaseException as error:
            future.set_exception(error)
        del call, future, function  # nothing is held while it waits
