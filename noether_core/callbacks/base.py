"""Define the hooks that a training loop calls, in the order that `noether_core.callbacks.hooks` has."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from noether_core.config.base import CallbackBaseConfig
from noether_core.emit.log_writer import BoundLogWriter, LogWriter, ScalarWriter
from noether_core.errors import warn
from noether_core.interrupts import Mark
from noether_core.schedule import Counter

TRAINER_ARGUMENTS = ("trainer", "model", "data_container", "tracker", "checkpoint_writer", "metric_property_provider")


class CallbackBase:
    """Do nothing at every hook; a callback overrides the hooks it needs.

    Hooks take keyword arguments only, and ignore those they do not know. Where Ctrl-C comes a second time within a hook of an
    update's end, the run calls the hooks of that end once more when it goes on: `counter.update` tells which it was.

    Args:
        callback_config: the callback's config.
        log_writer: what scalars are logged to; any object with `add_scalar` and `add_nonscalar` will do.
        output_path: the run directory, or None to write no files.
        name: the callback's name among others; kept as an attribute.
        **trainer_arguments: `trainer`, `model`, `data_container`, `tracker`, `checkpoint_writer` and
            `metric_property_provider`, which some trainers pass to every callback; kept as attributes.

    Raises:
        TypeError: for any other keyword argument.

    Attributes:
        reads_log: whether it reads what the others log for an update: a loop calls its hooks after all the others'.
        should_stop: whether it wants training to end.
    """

    reads_log: ClassVar[bool] = False
    should_stop: bool = False

    def __init__(
        self,
        callback_config: CallbackBaseConfig,
        *,
        log_writer: ScalarWriter,
        output_path: str | Path | None = None,
        name: str | None = None,
        **trainer_arguments: Any,
    ) -> None:
        unknown = [argument for argument in trainer_arguments if argument not in TRAINER_ARGUMENTS]
        if unknown:
            raise TypeError(
                f"{type(self).__name__} got the unknown argument {unknown[0]!r}; it takes callback_config, log_writer,"
                f" output_path, name and what trainers pass: {', '.join(TRAINER_ARGUMENTS)}"
            )
        if not callable(getattr(log_writer, "add_scalar", None)):
            raise TypeError(
                f"{type(self).__name__} got log_writer={log_writer!r}; expected a LogWriter or an object with add_scalar"
            )
        self.callback_config = callback_config
        self.output_path = None if output_path is None else Path(output_path)
        self.name = name
        for argument in TRAINER_ARGUMENTS:
            setattr(self, argument, trainer_arguments.get(argument))
        self.log_writer: ScalarWriter = log_writer.bind(str(self)) if isinstance(log_writer, LogWriter) else log_writer
        self.logger = logging.getLogger(str(self))
        self._warned: set[str] = set()

    def __str__(self) -> str:
        return type(self).__name__

    def stateful(self) -> Sequence[object]:
        """Return the objects whose attributes are the callback's state. What these refer to is not changed in place."""
        return [self]

    def mark(self) -> Callable[[], None]:
        """Return a function that brings the callback back to where it stands."""
        return Mark(self.stateful()).go_back

    def whole(self, hook: Callable[..., None], **arguments: Any) -> None:
        """Call a hook that logs; if something other than an `Exception` interrupts it, as if it had not been called."""
        go_back = self.mark()
        writer = self.log_writer.writer if isinstance(self.log_writer, BoundLogWriter) else None
        logged = None if writer is None else writer.mark()
        try:
            hook(**arguments)
        except Exception:
            raise
        except BaseException:
            go_back()
            if writer is not None and logged is not None:
                writer.go_back(logged)
            raise

    def _warn_once(self, subject: str, message: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            warn(f"{self}: {message}")

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Run once, before the first step."""

    def track_after_accumulation_step(
        self,
        *,
        update_counter: Counter,
        update_outputs: Any = None,
        batch: Any = None,
        losses: Any = None,
        accumulation_steps: int = 1,
        accumulation_step: int = 0,
        **_: Any,
    ) -> None:
        """Run after each backward pass; the counter still shows the updates completed before this one."""

    def track_no_outputs(self) -> None:
        """Run before the last accumulation step of an update in which none had update outputs."""

    def has_tracked(self, update: int, accumulation_step: int) -> bool:
        """Tell whether the last `track_after_accumulation_step` was this step's, as far as the callback can tell."""
        return False

    def undo_accumulation_step(self) -> None:
        """Forget the last `track_after_accumulation_step`: another callback refused that step, so it is not counted."""

    def track_after_update_step(self, *, update_counter: Counter, times: Any = None, **_: Any) -> None:
        """Run after each update, once the counter shows it."""

    def after_update(self, *, update_counter: Counter, **_: Any) -> None:
        """Run after `track_after_update_step`."""

    def after_epoch(self, *, update_counter: Counter, **_: Any) -> None:
        """Run after an epoch's last `after_update`."""

    def at_eval(self, *, update_counter: Counter, **_: Any) -> None:
        """Run when the trainer evaluates outside of training."""

    def after_log(self, *, update_counter: Counter, **_: Any) -> None:
        """Run after the loop logged values of its own."""

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Run once, after the last step."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on: plain arrays, numbers and strings."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
