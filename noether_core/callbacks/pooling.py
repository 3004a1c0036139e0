"""Let the callbacks of a run log what all processes have: one meeting at an interval's end, for all callbacks that are due."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from noether_core.callbacks.meeting import Meeting, Source
from noether_core.emit.disk import Disk
from noether_core.emit.log_writer import LogWriter
from noether_core.errors import NoetherError, ProcessesMissingError
from noether_core.reduce.agreement import DUE, REST
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.pool import Iteration, Pool, Pooled
from noether_core.schedule import UNITS, Counter, TrainingIteration, UpdateCounter


class Member(Source, Protocol):
    """List what is needed of a tracking callback."""

    def is_due(self, hooks: Sequence[str], update_counter: Counter) -> bool:
        """Tell whether its interval ends when these hooks are called."""

    def has_rest(self, update_counter: Counter) -> bool:
        """Tell whether there is an interval under way that is to be logged when training ends; drop what is not."""

    def emit(self, update_counter: Counter, pooled: Pooled, *, resets: bool) -> None:
        """Log and save what was pooled; `resets` if this process's interval has ended too."""


class Pooling:
    """Pool the intervals of a run's tracking callbacks, or of a single one.

    Args:
        exchange: talks to the other processes.
        members: the callbacks, in the same order in each process.
        path, disk: the run directory, and what writes there; see `Meeting`.

    Attributes:
        is_main: whether this process writes.
    """

    def __init__(
        self, exchange: Exchange, members: Sequence[Member], path: Path | None, disk: Disk | None = None
    ) -> None:
        self.exchange = exchange
        self.is_main = exchange.index == 0
        self._members = members
        self._meeting = Meeting(exchange, members, path, disk=disk)
        self.take = self._meeting.take
        self._evaluations: Pool | None = None

    def evaluating(self, sources: Sequence[Source]) -> Meeting:
        """Return a meeting for the end of an evaluation; it knows the keys that those before agreed on."""
        if self._evaluations is None:
            self._evaluations = Pool(self.exchange, [source.config for source in sources])
        return Meeting(self.exchange, sources, None, self._evaluations)

    def begin(self, config: bytes, failure: Exception | None = None) -> None:
        """Make sure that all processes track alike.

        Args:
            config: what this process tracks, and how.
            failure: why this process cannot begin.

        Raises:
            NoetherError: if they do not, or if another one cannot begin; ProcessesMissingError: if some do not come.
        """
        self.exchange.arrive("begin the training")
        own = hashlib.blake2b(config, digest_size=16).digest() + secrets.token_bytes(8)
        of_each = self.exchange.all_gather(own + (b"" if failure is None else repr(failure).encode("utf-8")))
        if failure is not None:
            raise failure
        for at, each in enumerate(of_each):
            if told := each[24:].decode("utf-8"):
                raise NoetherError(f"process {at} cannot begin the training, so this one does not: {told}")
        others = [at for at, each in enumerate(of_each) if each[:16] != of_each[0][:16]]
        if others:
            raise NoetherError(
                f"the {self.exchange.count} processes track different things: the config of process"
                f" {', '.join(map(str, others))} is not that of process 0 (callbacks, updates_per_epoch, effective_batch_size,"
                " accumulation_steps, end, or whether it has a `record`); give all of them the same"
            )
        self._meeting.start = of_each[0][16:24].hex()

    def of_main(self, values: Mapping[str, Any], at: Counter) -> dict[str, Any]:
        """Return the main process's numbers, in every process, which so decide alike by them; all make this call.

        Args:
            values: this process's numbers, strings, and lists of these.
            at: where it is.

        Raises:
            ProcessesMissingError: if some processes do not come.
        """
        self.exchange.arrive(f"share what is logged at {at.cur_iteration}")
        told = json.dumps(values).encode("utf-8") if self.is_main else b""
        return dict(json.loads(self.exchange.all_gather(told)[0]))

    def before(self, hooks: Sequence[str], update_counter: Counter) -> list[Exception]:
        """Pool what is due when these hooks are called, for the callbacks to `take`; return what was raised.

        What is due in other processes alone is logged here.
        """
        due = [number for number, member in enumerate(self._members) if member.is_due(hooks, update_counter)]
        if not due:
            return []
        self._meeting.meet(dict.fromkeys(due, DUE), update_counter)
        return self._emit([number for number in self._meeting.found if number not in due], update_counter, resets=False)

    def finish(self, update_counter: Counter, *, has_rest: bool, writer: LogWriter | None = None) -> list[Exception]:
        """End this process's training: go on meeting the others until theirs has ended too; return what was raised.

        Args:
            update_counter: where this process is.
            has_rest: whether intervals that never ended are logged.
            writer: is shown where the furthest process is, and flushed.
        """
        errors: list[Exception] = []
        rest = [
            number for number, member in enumerate(self._members) if has_rest and _may_have_rest(member, update_counter)
        ]
        while True:
            found = self._meeting.meet(dict.fromkeys(rest, REST), update_counter, is_final=True)
            counter = update_counter if found is None else _counter(found.iteration)
            if writer is not None and self._meeting.found:
                writer.update_counter = counter
                if found is not None and found.are_all_final:  # then what is pooled is of intervals that are not over
                    writer.begin_provisional()
            errors += self._emit(list(self._meeting.found), counter, resets=True)
            if writer is not None:
                writer.flush()
            if found is None or found.are_all_final:
                if found is None and not errors and self._meeting.missed is not None:
                    errors.append(self._meeting.missed)
                self._close(is_complete=found is not None)
                return errors
            rest = [number for number in rest if number not in found.pooled and found.failed < 0]

    def _close(self, *, is_complete: bool) -> None:
        """Forget what is saved when the main process has logged it, which is when it comes once more."""
        if is_complete:
            self._meeting.wait_for_disk()
            with contextlib.suppress(ProcessesMissingError):
                self.exchange.arrive("end the training")
                self._meeting.discard()
        self.exchange.close()

    def end(self, update_counter: Counter, *, failed: bool, has_rest: bool, writer: LogWriter) -> list[Exception]:
        """Finish, or abandon what has failed; return what was raised."""
        if failed:
            self.abandon(update_counter)
            return []
        try:
            return self.finish(update_counter, has_rest=has_rest, writer=writer)
        except Exception as error:
            return [error]

    def abandon(self, update_counter: Counter) -> None:
        """End this process's training without the others, after an error; what it has is saved for `noether-parity merge`."""
        rest = [number for number, member in enumerate(self._members) if _may_have_rest(member, update_counter)]
        self._meeting.save(dict.fromkeys(rest, REST), update_counter)
        self.exchange.close()

    def _emit(self, numbers: Sequence[int], update_counter: Counter, *, resets: bool) -> list[Exception]:
        errors = []
        for number in numbers:
            found = self._meeting.found.pop(number)
            try:
                if isinstance(found, Exception):
                    raise found
                self._members[number].emit(update_counter, found, resets=resets)
            except Exception as error:
                errors.append(error)
        return errors


def _may_have_rest(member: Member, update_counter: Counter) -> bool:
    """Tell whether it has a rest, or cannot say: the others are to know that, and do not wait."""
    try:
        return member.has_rest(update_counter)
    except Exception:
        return True


def _counter(iteration: Iteration) -> UpdateCounter:
    return UpdateCounter(TrainingIteration(**dict(zip(UNITS, iteration, strict=True))))
