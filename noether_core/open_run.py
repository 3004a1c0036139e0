"""Open a run's directory and its log, end its updates, and close it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from noether_core.callbacks import hooks
from noether_core.config.yaml_file import require_readable, with_checksum
from noether_core.emit.disk import PATIENCE
from noether_core.emit.disk_thread import is_passing
from noether_core.emit.files import remove_temporaries, write_whole
from noether_core.emit.run_log import RunLog
from noether_core.emit.starts import origin_at
from noether_core.emit.trackers.feed import CLOSING_TIME
from noether_core.errors import HookOrderError, NoetherError, RunDirectoryError
from noether_core.forks import in_children
from noether_core.interrupts import complete, in_turn
from noether_core.made_run import MadeRun
from noether_core.regular_files import require_own_parts
from noether_core.termination import SIGNALS, Termination


class OpenRun(MadeRun):
    """Add to a run its start and its end; see `noether_core.run.Run`, which adds the training's steps."""

    # the hooks of an update's end that are to be called, and its times, until they have been
    _unended: tuple[tuple[str, ...], Mapping[str, float] | None] | None = None
    _terminations: tuple[Termination, ...] = ()

    def __enter__(self) -> Self:
        return self.start()

    @in_turn
    def start(self) -> Self:
        """Begin training: write `config.yaml` and call `before_training`; return the run. Entering the `with` block does this.

        Raises:
            RunLockedError: if another run, here or in another process, writes to the run directory.
            RunDirectoryError: if it cannot be made or written.
        """
        if self._state != "new":
            raise HookOrderError(f"this run is {self._state}; a Run is used once: make another one")
        log = self.log_writer.run_log
        try:
            self._listen()
            with self.interrupts:
                self._begin(log)
        except BaseException:
            if self._state == "training":
                self._state = "broken by its failed start"
            self._unlisten()
            if log is not None:
                log.let_go()
            raise
        return self

    def _begin(self, log: RunLog | None) -> None:
        failure = None if log is None else self._open_directory(log)
        if self.pooling is not None:
            self.pooling.begin(self._config.yaml(), failure)
        if failure is not None:
            raise failure
        self._state = "training"
        in_children(self, OpenRun._leave_to_parent)
        self.log_writer.begin(origin_at(self._start, self._about_start()))
        for callback in self.callbacks:
            callback.before_training(update_counter=self.counter)

    def _about_start(self) -> dict[str, Any]:
        """Return what the record of a start says of what is run."""
        return {**self._config.about(), "arithmetic": self.backend.arithmetic()}

    def _open_directory(self, log: RunLog) -> Exception | None:
        """Be the one that writes to the run directory; return what is against it, which other processes are to be told.

        A directory that cannot be written is refused here; a disk that is full may have room later.
        """
        config, data = self.path / "config.yaml", with_checksum(self._config.yaml())
        try:
            require_readable(data)
            log.hold(self._give_way if self._is_driven else None)
            log.beside[config] = data
            require_own_parts(self.path)
            remove_temporaries(self.path)
            write_whole(config, data)
        except (NoetherError, OSError) as error:
            if isinstance(error, NoetherError):
                return error
            if not is_passing(error):
                return _cannot_be_written(self.path, error)
            self.log_writer.disk.put_file(config, data)
        return None

    def _listen(self) -> None:
        """Answer signals."""
        self.interrupts.listen()
        self._terminations = tuple(Termination(self._terminate, number) for number in SIGNALS)
        for each in self._terminations:
            each.install()

    def _unlisten(self) -> None:
        """Answer them no more."""
        for each in self._terminations:
            each.remove()
        self.interrupts.release()  # last: it holds Ctrl-C back meanwhile

    def _give_way(self) -> None:
        """End this run, whose trainer may have failed without saying so, for another one in its directory."""
        if self._state == "training":
            self._state = "ended by another one in its directory"
            self._unlisten()
            self.log_writer.close()

    def _leave_to_parent(self) -> None:
        """Write nothing in a forked child: not by a step, nor at its end, which may leave the `with` block."""
        if self._state == "training":
            self._state = "forked"
            self.interrupts.forget()

    def _refuse_unless_open(self, method: str) -> None:
        if self._state == "forked":
            raise HookOrderError(
                f"run.{method} was called in process {os.getpid()}, which was forked from the one that has the run open; call"
                " it there, or make a run in another directory after the fork"
            )
        if self._state != "training":
            advice = "write `with run:` around the loop" if self._state == "new" else "make a new Run"
            raise HookOrderError(f"run.{method} was called on a run that is {self._state}; {advice}")
        if self._unended is not None:  # Ctrl-C came twice
            self._end_update()

    # ------------------------------------------------------------------ the end of an update

    def _end_update(self) -> None:
        """Call the hooks of an update's end, or an epoch's, and flush. Where this was interrupted, it may be called again."""
        if self._unended is None:
            return
        due, times = self._unended
        try:
            if due[0] == "after_update":
                for callback in self.callbacks:
                    callback.track_after_update_step(update_counter=self.counter, times=times)
            self._call(*due)
        except Exception:
            self._has_ended_update()
            raise
        except BaseException:
            if self.pooling is not None:  # the other processes do not come again
                self._has_ended_update()
            raise
        self._has_ended_update()

    def _has_ended_update(self) -> None:
        if self._unended == (("after_epoch",), None):
            self.log_writer.restate()
        self._unended = None

    def _call(self, *due: str) -> None:
        """Call periodic hooks of all callbacks, flush what they log, and raise the first error."""
        pooled = () if self.pooling is None else self.pooling.before(due, self.counter)
        errors = [*pooled, *hooks.periodic(self.callbacks, due, self.counter)]
        self.log_writer.flush()
        if errors:
            self.flight_recorder.see(errors)
            raise errors[0]

    # ------------------------------------------------------------------ the end

    @property
    def is_finished(self) -> bool:
        """Tell whether the run's end is reached, or a callback wants training to end."""
        return self.counter.is_finished or any(callback.should_stop for callback in self.callbacks)

    def finish(self) -> None:
        """End training: emit the interval under way, flush and close. Leaving the `with` block does this.

        Of several processes one that ends early waits for the others' intervals to end, and gives them what it has.
        """
        self._finish(failed=False)

    @in_turn
    def _finish(self, *, failed: bool, time_limit: float = CLOSING_TIME) -> None:
        if self._state != "training":
            return

        def close() -> None:
            if self.pooling is None:
                self._end(failed, time_limit)
            else:  # the other processes do not come again
                self.log_writer.close(time_limit)

        with self.interrupts:
            try:
                self._end(failed, time_limit)
                self._state = "finished"
            except BaseException as error:
                if not isinstance(error, Exception):
                    complete(error, close)
                self._state = "finished"
                raise
            finally:
                if self._state == "finished":  # else Ctrl-C came twice: it can be called again
                    self._unlisten()

    def _end(self, failed: bool, time_limit: float) -> None:
        errors: list[Exception] = []
        try:
            self._end_update()
        except Exception as error:
            errors.append(error)
        self._keep_state()
        due = () if self._is_just_loaded else ("after_training",)  # whoever saved the interval under way has logged it
        try:
            if self.pooling is not None:
                errors += self.pooling.end(self.counter, failed=failed, has_rest=bool(due), writer=self.log_writer)
            self.log_writer.begin_provisional()
            errors += hooks.periodic(self.callbacks, due, self.counter)
        except Exception as error:
            errors.append(error)
        self.flight_recorder.see(errors)
        self.log_writer.close(time_limit)
        if errors:
            raise errors[0]

    def _keep_state(self) -> None:
        """Keep what a checkpoint needs, before the end gives out what there is of the intervals under way."""

    @in_turn
    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is None:
            self.finish()
            return
        try:
            with self.interrupts:
                self.flight_recorder.write(error)
                self._finish(failed=True)
        except BaseException as second:  # the loop's own error is the one to see, also when Ctrl-C is hit once more
            error.add_note(f"while ending the run, this was raised too: {second!r}")
            self.log_writer.disk.close(PATIENCE)

    def _terminate(self, signal: str, is_inside: bool) -> None:
        """End the run, for the process is about to; if these packages still run, write at least what was flushed."""
        if is_inside or not self.interrupts.lock.acquire(timeout=PATIENCE):  # of another thread, which hangs
            self.log_writer.disk.close(PATIENCE)
            return
        try:
            self.flight_recorder.write(signal)
            self._finish(failed=True, time_limit=PATIENCE)
        finally:
            self.interrupts.lock.release()


def _cannot_be_written(path: Path, error: OSError) -> RunDirectoryError:
    file = next((each for each in (path, *path.parents) if os.path.isfile(each)), None)  # noqa: PTH113 - of no name it raises
    if file is not None:
        reason = f"{str(file)!r} is a file in its way, to be moved; give the run a directory of another name"
    else:
        where = f" ({error.filename!s:.300})" if error.filename else ""
        reason = f"{error.strerror or error!s}{where}; give the run a directory that this user may write to"
    found = RunDirectoryError(f"the run directory {str(path)!r} cannot be written: {reason}")
    found.errno, found.filename = error.errno, error.filename
    found.__cause__ = error
    return found
