"""Let processes wait for one another through JAX's coordination service, with a time limit and one verdict for all.

An arrival is two of the service's barriers. At the first the processes wait for one another; the second, which each passes only
while it has not given up, makes the verdict: a barrier fails or is passed in every process alike, late ones too. A barrier's
name is used until it fails, so that a process that was stopped over several arrivals finds each as the others had it, and
nothing grows with their number.

The service runs in process 0. If that is the one which is stopped, no call returns, so that the calls are made on a thread, and
the others give up by their own clocks. No protocol can have one verdict for all if the process with the service is stopped in
the very milliseconds between the two barriers and lasts longer than the others wait; every other stop is decided alike.

What is not ours: once a process misses JAX's heartbeats (`heartbeat_timeout_seconds` of `jax.distributed.initialize`, 100 s),
JAX aborts all others, unless `jax_enable_recoverability` was set before; and if process 0 ends, with its service, always.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Protocol

from noether_core.errors import ProcessesMissingError

_TICK = 1.0  # seconds: how often the service looks at its clock
_ANSWER = 1.5  # seconds that an answer may take, on a busy machine


class Client(Protocol):
    """Name what is used of JAX's client of the service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...
    def key_value_set_bytes(self, key: str, value: bytes, allow_overwrite: bool = False) -> None: ...
    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...
    def key_value_delete(self, key: str) -> None: ...
    def key_value_increment(self, key: str, increment: int) -> int: ...
    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...
    def blocking_key_value_get_bytes(self, key: str, timeout_in_ms: int) -> bytes: ...
    def wait_at_barrier(
        self, barrier_id: str, timeout_in_ms: int, process_ids: Sequence[int] | None = None
    ) -> None: ...


class Arrivals:
    """Arrive, again and again.

    Args:
        client: of JAX's service.
        name: where its keys and barriers are; the same in all processes.
        index: this process's number.
        count: how many there are.
        time_limit: seconds that one waits for the others.
    """

    def __init__(self, client: Client, name: str, index: int, count: int, time_limit: float) -> None:
        self._client, self._name, self._index, self._count = client, name, index, count
        self._time_limit = time_limit
        self._number = 0
        self._failures = 0
        self._cleared = 0

    def arrive(self, what: str) -> None:
        """Wait until all processes are here.

        Raises:
            ProcessesMissingError: in every process, if some are not in time.
        """
        self._number += 1
        attempt = _Attempt(self._client, self._name, self._index, self._count, self._number, self._failures)
        missing, cause = attempt.verdict(self._time_limit)
        if missing is None:
            if self._index == 0:  # each process has read of the failures before
                for failed in range(self._cleared, self._failures):
                    self._client.key_value_delete(f"{self._name}/{failed}/")
            self._cleared = self._failures
            return
        self._failures += 1
        named = ", ".join(map(str, missing)) or "some"
        hint = (
            "; the service of jax.distributed, which runs in process 0, does not answer" if attempt.has_given_up else ""
        )
        raise ProcessesMissingError(
            f"of {self._count} processes {named} did not come within {self._time_limit:g} s to {what}{hint}: see whether they"
            " still run, and whether every process has as many updates; where one may take longer, give a greater time_limit",
            missing,
        ) from cause


class _Attempt:
    """Arrive once."""

    def __init__(self, client: Client, name: str, index: int, count: int, number: int, failures: int) -> None:
        self._client, self._name, self._index, self._count = client, name, index, count
        self._number = number
        self._place = f"{name}/{failures}"  # a call to a stopped service may land late, where nobody looks any more
        self._verdict_key = f"{name}/{failures}/missing"
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._is_met = self._is_over = self.has_given_up = False
        self._missing: tuple[int, ...] | None = None
        self._error: Exception | None = None

    def verdict(self, time_limit: float) -> tuple[tuple[int, ...] | None, Exception | None]:
        """Return which processes are missing, None if all are here; and what the service said."""
        first = max(0.7 * time_limit - _TICK, 0.25 * time_limit)
        second = max(0.06 * time_limit, _TICK)
        answer = _TICK + max(_ANSWER, 0.1 * time_limit)
        threading.Thread(target=self._work, args=(first, second), daemon=True, name="noether-arrival").start()
        with self._changed:
            is_met = self._changed.wait_for(lambda: self._is_met or self._is_over, first + answer)
            if is_met and self._changed.wait_for(lambda: self._is_over, second + answer):
                return self._missing, self._error
            self.has_given_up = True
            return (0,), None

    def _work(self, first: float, second: float) -> None:
        missing, failure = None, None
        try:
            self._client.key_value_set(f"{self._place}/at/{self._index}", str(self._number), allow_overwrite=True)
            self._client.wait_at_barrier(f"{self._place}/here", round(first * 1000))
            with self._changed:
                self._is_met = True
                self._changed.notify_all()
                is_here = not self.has_given_up
            if is_here:
                self._client.wait_at_barrier(f"{self._place}/agreed", round(second * 1000))
        except Exception as error:
            failure = error
        if failure is not None or self.has_given_up:
            missing = self._settled(failure)
        with self._changed:
            self._missing, self._error, self._is_over = missing, failure, True
            self._changed.notify_all()

    def _settled(self, failure: Exception | None) -> tuple[int, ...]:
        """Return who is missing, as the first process that noted it has it."""
        try:
            own = (0,) if self.has_given_up else self._found_missing(failure)
            try:
                self._client.key_value_set(self._verdict_key, ",".join(map(str, own)))
            except Exception:
                noted = self._client.blocking_key_value_get(self._verdict_key, 1000)
                return tuple(int(process) for process in noted.split(",") if process)
            return own
        except Exception:  # the service is gone, and with it the process that it runs in
            return (0,)

    def _found_missing(self, failure: Exception | None) -> tuple[int, ...]:
        there = self._client.key_value_dir_get(f"{self._place}/at/")
        here = {int(key.rpartition("/")[2]) for key, number in there if int(number) >= self._number}
        missing = set(range(self._count)) - here
        if not missing:  # they came after the barrier failed, whose message names some
            _, _, names = str(failure).partition("task names:")
            missing = {int(name) for name in re.findall(r"^\s*(?:\S*task:)?(\d+)\s*$", names, re.MULTILINE)}
        return tuple(sorted(missing))
