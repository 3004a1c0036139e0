"""Agree through a torch `Store` which processes have come, so that all of them decide alike, in a bounded time.

Rounds are numbered from the start of the run, by each process for itself, so a process that was stopped for several of them
finds the verdicts of those that it missed, one call each, and is level with the others again. In a round each process adds
itself to a count; the last one writes the verdict "go". Who has waited for the time limit writes "missing". The store lets only
the first of these be written, and everyone reads it. Two threads call it, for one waits when the other gives up.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

from torch.distributed.distributed_c10d import PrefixStore, Store

from noether_core.errors import NoetherError, ProcessesMissingError
from noether_torch.store_calls import StoreCaller

_Result = TypeVar("_Result")
_RENEW = 1 << 32  # in a round's count: one that wants new connections


class Rendezvous:
    """Meet the other processes.

    Args:
        store: reached by all of them.
        index: this process's number.
        count: how many there are.
        time_limit: seconds to wait for the others.
        host: the number of the process that holds the store; None if it is none of them.
    """

    def __init__(self, store: Store, index: int, count: int, time_limit: float, host: int | None) -> None:
        self.index, self.count, self.time_limit = index, count, time_limit
        self._grace = min(1.0, time_limit / 2)  # for what needs nobody else
        self._host = host
        self._what = "start tracking"
        self._round = -1
        self._oldest = 0  # round of which there are keys
        self._waiter, self._other = (StoreCaller(store, time_limit + 4 * self._grace) for _ in range(2))
        self._store = store  # is held, for its host ends when nothing there holds it
        self._connect_threads()
        self._token = self._start()

    # ------------------------------------------------------------------ arrivals

    def arrive(self, what: str, *, renew: bool) -> bool:
        """Wait until all are here, and tell whether one of them asked for new connections.

        Raises:
            ProcessesMissingError: if some are not here in time.
        """
        self._round, self._what = self._round + 1, what
        arrival = self._waiter.call(partial(self._arrive, self._round, renew))
        wait([arrival], self.time_limit)
        if not arrival.done():
            self._other.call(partial(self._give_up, self._round, time.monotonic()))
        verdict, missing = self._result(arrival, 3 * self._grace)
        if verdict == b"missing":
            raise ProcessesMissingError(self._told(missing), missing)
        if self.index == 0:
            self._other.call(partial(self._forget, range(self._oldest, self._round), verdict == b"renew"))
            self._oldest = self._round
        return verdict == b"renew"

    def _arrive(self, number: int, renew: bool, store: Store) -> tuple[bytes, tuple[int, ...]]:
        verdict = self._key(number, "verdict")
        store.set(self._key("at", self.index), str(number))
        count = store.add(self._key(number, "count"), 1 + _RENEW * renew)
        if count % _RENEW == self.count:
            said = _decided(store, verdict, "renew" if count >= _RENEW else "go")
        else:
            said = store.get(verdict)
        return said, _numbers(store.get(self._key(number, "missing"))) if said == b"missing" else ()

    def _give_up(self, number: int, asked: float, store: Store) -> None:
        """Say that the round has failed, before anything that could wait for a stopped host; then, who is to be blamed."""
        if _decided(store, self._key(number, "verdict"), "missing") == b"missing":
            was_stopped = self._host is not None and time.monotonic() > asked + 1.5 * self._grace
            missing = [self._host] if was_stopped else self._behind(store, "at", number)
            _decided(store, self._key(number, "missing"), json.dumps(missing))

    def _forget(self, rounds: range, is_renewed: bool, store: Store) -> None:
        """Delete what all have read: they have come to a later round."""
        for old in rounds:
            for name in ("count", "verdict", "missing", "lost"):
                store.delete_key(self._key(old, name))
        if is_renewed:
            connections = self._key("connections")
            current = self._key("connections", rounds.stop)
            for key in store.list_keys():
                if key.startswith(connections) and not key.startswith(f"{current}/"):
                    store.delete_key(key)

    def _told(self, missing: tuple[int, ...]) -> str:
        advice = (
            "; see whether they were killed or stopped, or do something else meanwhile that the others do not (an evaluation,"
            " a download): do it in all of them, or raise `time_limit`"
        )
        limit = f"{self.time_limit:g} s"
        if self.index in missing:
            return (
                f"process {self.index} of {self.count} came too late to {self._what}: the others gave up after {limit}"
                + advice
            )
        if not missing:
            return f"the last of {self.count} processes came when the {limit} to {self._what} were over" + advice
        return f"{_processes(missing)} of {self.count} did not come within {limit} to {self._what}" + advice

    # ------------------------------------------------------------------ connections

    def connect(self, make: Callable[[Store], _Result]) -> _Result:
        """Return what `make` makes of a store that belongs to this round; it may take as long as the time limit."""
        prefix = self._key("connections", self._round)
        connecting = StoreCaller(self._store, self.time_limit)  # of its own, for this may wait beyond the next arrival
        made = connecting.call(lambda store: make(PrefixStore(prefix, store)))
        return self._result(made, self.time_limit + self._grace)

    def lost(self, error: Exception) -> ProcessesMissingError:
        """Return what to raise after a collective failed in this round: it names the processes that did not notice."""
        roll_call = partial(self._roll_call, self._round, time.monotonic())
        missing = self._result(self._other.call(roll_call), 2 * self._grace)
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
        if self.index in missing:
            who = f"process {self.index} of {self.count} was away while the processes met to {self._what}"
        elif missing:
            who = f"{_processes(missing)} of {self.count} came to {self._what}, and then no longer answered"
        else:
            who = f"the connections between the {self.count} processes broke while they met to {self._what}"
        return ProcessesMissingError(
            f"{who} (gloo says: {reason}); see whether they were killed or stopped:"
            " if they go on, the next interval's end works again",
            missing,
        )

    def _roll_call(self, number: int, asked: float, store: Store) -> tuple[int, ...]:
        """Return who has not come here within a moment; all get what the first one says.

        Where the store's host was stopped, this is made when it goes on: then this process has told that it was missing.
        """
        found, end = self._key(number, "lost"), asked + 1.5 * self._grace
        store.check([found])  # nothing else is sent before the host answers
        if time.monotonic() > end and self._host is not None:
            _decided(store, found, json.dumps([self._host]))
        store.set(self._key("lost", self.index), str(number))
        while (away := self._behind(store, "lost", number)) and time.monotonic() < end and not store.check([found]):
            time.sleep(0.02)
        return _numbers(_decided(store, found, json.dumps(away)))

    # ------------------------------------------------------------------ the start

    def _connect_threads(self) -> None:
        """Connect both threads now, for later the store's host may be stopped."""
        calls = [caller.call(Store.num_keys) for caller in (self._waiter, self._other)]
        wait(calls, self.time_limit)
        for call in calls:
            if call.done() and isinstance(error := call.exception(), RuntimeError):
                raise NoetherError(
                    f"the processes cannot agree through the store that torch.distributed was initialized with ({error});"
                    " initialize it with a TCPStore, a FileStore or an address (env://, tcp://, file://), or track in one"
                    " process alone with `processes=1`"
                ) from error
            self._result(call, 0)

    def _start(self) -> str:
        """Return a token that is this start's alone, for a store may hold what an earlier start left there.

        Each process leaves a number of its own; the main one answers under that number. It looks whether a process has arrived
        after it read the number: if not, the number is of this start or of none that still lives.
        """
        own = secrets.token_hex(8)
        if self.index:
            asked = self._waiter.call(partial(_ask, own, self.index))
            wait([asked], self.time_limit)
            if not asked.done() or isinstance(asked.exception(), RuntimeError):
                message = f"process 0 of {self.count} did not come within {self.time_limit:g} s to {self._what}"
                raise ProcessesMissingError(message + "; every process of the group must make its `Run`", (0,))
            return asked.result()
        self._token = own
        self._result(self._waiter.call(self._prepare), self.time_limit)
        self._other.call(partial(self._answer, own, time.monotonic() + self.time_limit))
        return own

    def _prepare(self, store: Store) -> None:
        for index in range(self.count):
            store.set(self._key("at", index), "-1")
            store.set(self._key("lost", index), "-1")

    def _answer(self, token: str, end: float, store: Store) -> None:
        answered: dict[int, bytes] = {}
        away = self._behind(store, "at", 0)
        while away and time.monotonic() < end:
            joining = {index: store.get(f"join/{index}") for index in away if index and store.check([f"join/{index}"])}
            away = self._behind(store, "at", 0)
            for index in {*away} & {*joining}:
                if answered.get(index) != joining[index]:
                    store.set(f"start/{joining[index].decode()}", token)
                    answered[index] = joining[index]
            time.sleep(0.005)
        for own in answered.values():
            store.delete_key(f"start/{own.decode()}")

    # ------------------------------------------------------------------ small things

    def _behind(self, store: Store, name: str, number: int) -> list[int]:
        """Return the processes that were last noted in an earlier round."""
        noted = store.multi_get([self._key(name, index) for index in range(self.count)])
        return [index for index, at in enumerate(noted) if int(at) < number]

    def _key(self, *parts: object) -> str:
        return "/".join(map(str, (self._token, *parts)))

    def _result(self, future: Future[_Result], seconds: float) -> _Result:
        """Return what a call to the store gave.

        Raises:
            ProcessesMissingError: if it gives nothing in time, or has failed.
        """
        wait([future], seconds)
        error = future.exception() if future.done() else None
        if future.done() and not isinstance(error, RuntimeError):
            return future.result()
        says = f"fails ({error})" if error else "does not answer"
        host = f"process {self._host}" if self._host is not None else "a process outside of the group"
        raise ProcessesMissingError(
            f"process {self.index} of {self.count} could not {self._what}: the store of torch.distributed {says}; {host}"
            " holds it: see whether it was killed or stopped",
            () if self._host is None else (self._host,),
        ) from error

    def close(self) -> None:
        """End the threads; keys of the last round stay, for another process may still read them."""
        self._waiter.close()
        self._other.close()


def _ask(own: str, index: int, store: Store) -> str:
    store.set(f"join/{index}", own)
    token: str = store.get(f"start/{own}").decode()
    return token


def _decided(store: Store, key: str, value: str) -> bytes:
    """Return what the first caller for this key gave."""
    decided: bytes = store.compare_set(key, "", value)
    store.set(key, decided.decode())  # for a TCPStore without libuv wakes those that wait only for this
    return decided


def _numbers(data: bytes) -> tuple[int, ...]:
    return tuple(json.loads(data))


def _processes(numbers: Sequence[int]) -> str:
    return f"process{'es' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"
