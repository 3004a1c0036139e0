"""Log values of one's own to an open run, and evaluate in it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

from noether_core.callbacks import hooks
from noether_core.callbacks.evaluation import Evaluation
from noether_core.errors import HookOrderError, NoetherError
from noether_core.interrupts import complete, in_turn
from noether_core.open_run import OpenRun
from noether_core.reduce.exchange import is_exchange
from noether_core.select import flatten


class LoggedRun(OpenRun):
    """Add to a run what it logs beside the training's steps; see `noether_core.run.Run`, which adds these."""

    @in_turn
    def log(self, values: Mapping[str, Any]) -> None:
        """Log values of your own at the current iteration, into the entry that its update has.

        In `evaluate` their keys get its prefix. They are in the file within a second, or as `durability` says.

        Args:
            values: a dict from names to numbers (single-element arrays too), strings, or lists of these; nested dicts are
                flattened with `/`.

        Raises:
            HookOrderError: before the run has started, or after it has ended.
            DuplicateKeyError: if a key was logged for this update already; all the others are logged.
            NoetherError: for a value that cannot be logged, likewise.
        """
        self._refuse_unless_open("log")
        evaluation = self._own_evaluation("log")
        prefix = "" if evaluation is None else f"{evaluation.prefix}/"
        named = {prefix + key: value for key, value in flatten(values).items()}
        errors: list[Exception] | None = None
        with self.interrupts:
            mark = self.log_writer.mark()
            try:
                errors = self.log_writer.bind("run.log").add_values(named)
                errors = [*errors, *self._after_log()]
            except BaseException as interrupt:
                if errors is None:
                    self.log_writer.go_back(mark)
                elif not isinstance(interrupt, Exception):
                    complete(interrupt, self._after_log)
                raise
        if errors:
            raise errors[0]

    def _after_log(self) -> list[Exception]:
        errors = [] if self._evaluation else hooks.periodic(self.callbacks, ("after_log",), self.counter)
        self.log_writer.flush()
        return errors

    @contextmanager
    def evaluate(self, prefix: str = "eval", *, processes: Literal[1] | None = None) -> Iterator[None]:
        """Evaluate: what is tracked by `step` and logged by `log` in this context goes under `{prefix}/`.

        Its steps are no training steps: nothing counts them, and the intervals under way stay as they are. At its end, what the
        tracking callbacks name of its outputs is logged, reduced over all of them, and every callback's `at_eval` is called. If
        it raises, what it tracked is dropped.

        Args:
            prefix: such as `eval` or `test`.
            processes: 1 if this process evaluates without the others; None: all do, each its part.

        Raises:
            HookOrderError: outside of training, or within another evaluation.
            NoetherError: for a prefix that cannot be one.
        """
        if processes is not None and is_exchange(processes, "run.evaluate"):
            raise NoetherError("run.evaluate got an Exchange as processes; expected 1 or None: the run has one for all")
        evaluation = Evaluation(self.callbacks, prefix, alone=processes == 1)
        try:  # whatever is raised from here on, on which line, ends the evaluation
            self._begin_evaluation(evaluation)
            yield
            with self.interrupts.lock:
                self._refuse_unless_open("evaluate")
                with self.interrupts:
                    self._end_evaluation(evaluation)
        except BaseException:
            with self.interrupts.lock:
                if self._evaluation is evaluation:
                    self._evaluation = None
                self.log_writer.flush()
            raise

    @in_turn
    def _begin_evaluation(self, evaluation: Evaluation) -> None:
        self._refuse_unless_open("evaluate")
        if self._evaluation is not None:
            raise HookOrderError(
                "run.evaluate was called within run.evaluate; end the first evaluation before the next"
            )
        self._evaluation = evaluation

    def _own_evaluation(self, method: str) -> Evaluation | None:
        """Return the evaluation under way, if there is one; raises `HookOrderError` if another thread evaluates."""
        evaluation = self._evaluation
        if evaluation is not None and evaluation.thread != threading.get_ident():
            raise HookOrderError(
                f"run.{method} was called while another thread is in run.evaluate, and so it may be part of that"
                " evaluation; call it in that thread, or when the evaluation has ended"
            )
        return evaluation

    def _end_evaluation(self, evaluation: Evaluation) -> None:
        mark, is_logged = self.log_writer.mark(), False
        try:
            evaluation.log(self.log_writer, self.counter)
            is_logged = True
        except BaseException as error:
            if not is_logged and not isinstance(error, Exception):
                self.log_writer.go_back(mark)  # what it tracked is dropped
            raise
        finally:
            self._evaluation = None
            self.log_writer.flush()
        self._call("at_eval")
