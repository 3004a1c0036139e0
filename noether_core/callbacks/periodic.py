"""Turn the hooks into one periodic call: every N epochs, updates or samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

from noether_core.callbacks.base import CallbackBase
from noether_core.checked import mapping, whole
from noether_core.config.base import PeriodicCallbackConfig
from noether_core.errors import HookOrderError, NoetherError
from noether_core.interrupts import Mark
from noether_core.schedule import Counter

IntervalType = Literal["epoch", "update", "sample", "eval"]


class PeriodicCallback(CallbackBase):
    """Call `periodic_callback` at each end of the config's interval.

    A subclass overrides `periodic_callback` and the `track_*` hooks. It must not override `after_update` or
    `after_epoch`, which decide when: that raises `TypeError` at construction.

    Args:
        callback_config: a `PeriodicCallbackConfig`.
        **arguments: see `CallbackBase`.
    """

    callback_config: PeriodicCallbackConfig
    # `{"best": real}`: a state has `_best`, read by `real`, which takes what is there and what a message calls it
    _kept: ClassVar[Mapping[str, Callable[[Any, str], Any]]] = {}

    def __init__(self, callback_config: PeriodicCallbackConfig, **arguments: Any) -> None:
        for hook in ("after_update", "after_epoch"):
            if getattr(type(self), hook) is not getattr(PeriodicCallback, hook):
                raise TypeError(
                    f"{type(self).__name__} overrides {hook}, which decides when the interval ends;"
                    " override periodic_callback or a track_* hook instead"
                )
        self.interval = callback_config.interval
        self._unit = self.interval.unit
        self.verbose = bool(getattr(callback_config, "verbose", False))
        super().__init__(callback_config, **arguments)
        self._reached: int | None = None  # epochs, updates or samples at the last look

    def __str__(self) -> str:
        return f"{type(self).__name__}({self.interval.verbose})"

    def periodic_callback(self, *, interval_type: IntervalType, update_counter: Counter, **_: Any) -> None:
        """Do the callback's work at the end of an interval; an evaluation leaves the interval untouched."""
        if interval_type != "eval":
            self._emit(update_counter)

    def _emit(self, update_counter: Counter) -> None:
        """Log what the interval gave, and start the next."""

    def _add_scalar(self, key: str, value: Any, format_str: str) -> None:
        told: dict[str, Any] = {"logger": self.logger, "format_str": format_str} if self.verbose else {}
        self.log_writer.add_scalar(key=key, value=value, **told)

    def _count(self, update_counter: Counter) -> int:
        return int(getattr(update_counter, self._unit))

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Note where training starts."""
        self._reached = self._count(update_counter)

    def track_after_accumulation_step(self, *, update_counter: Counter, **_: Any) -> None:
        """Note where the interval stands, and refuse to go past an end that no hook announced.

        Raises:
            HookOrderError: if the counter passed an interval's end without the hook that announces it.
        """
        if getattr(update_counter, self._unit) == self._reached:
            return
        now = self._count(update_counter)
        if self._reached is None:
            self._reached = now
        elif self.interval.ends_between(self._reached, now):
            hook = "after_epoch" if self._unit == "epoch" else "after_update"
            raise HookOrderError(
                f"{self} was at {self._unit} {self._reached} and is now at {now}: an interval has ended, but"
                f" {hook} was not called for it, so two intervals would mix. Call {hook} after each"
                f" {'epoch' if hook == 'after_epoch' else 'update'}, or before_training to start anew"
            )

    def after_update(self, *, update_counter: Counter, **_: Any) -> None:
        """Fire, if updates or samples are counted."""
        if self._unit != "epoch":
            self._advance(update_counter)

    def after_epoch(self, *, update_counter: Counter, **_: Any) -> None:
        """Fire, if epochs are counted."""
        if self._unit == "epoch":
            self._advance(update_counter)

    def is_due(self, hooks: Sequence[str], update_counter: Counter) -> bool:
        """Tell whether the interval ends when these hooks are called."""
        own = "after_epoch" if self._unit == "epoch" else "after_update"
        return own in hooks and self._has_ended(update_counter)

    def _has_ended(self, update_counter: Counter) -> bool:
        before, now = self._reached, self._count(update_counter)
        if before is None:  # no hook came before: only what a single update or epoch adds can be known
            before = now - (getattr(update_counter, "effective_batch_size", 1) if self._unit == "sample" else 1)
        return self.interval.ends_between(before, now)

    def _advance(self, update_counter: Counter) -> None:
        if self._has_ended(update_counter):
            self.whole(self._end_interval, update_counter=update_counter)
        else:
            self._reached = self._count(update_counter)

    def _end_interval(self, *, update_counter: Counter) -> None:
        self._reached = self._count(update_counter)
        self.periodic_callback(interval_type=self._unit, update_counter=update_counter)

    def at_eval(self, *, update_counter: Counter, **_: Any) -> None:
        """Call `periodic_callback` with the interval type `eval`."""
        self.periodic_callback(interval_type="eval", update_counter=update_counter)

    def state_dict(self) -> dict[str, Any]:
        """Return where the interval stands, and what the callback holds."""
        kept = {name: getattr(self, f"_{name}") for name in self._kept}
        return {"reached": -1 if self._reached is None else self._reached, **kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            NoetherError: for a state of another form; the callback stays as it was.
        """
        with Mark(self.stateful()):
            try:
                given = mapping(state, "it", "reached", *self._kept)
                reached = whole(given["reached"], "'reached'", -1)
                kept = {name: read(given[name], repr(name)) for name, read in self._kept.items()}
            except Exception as error:
                raise NoetherError(
                    f"{self} got a state that is incomplete or damaged ({error}); load what its state_dict() returned"
                ) from error
            self._reached = None if reached < 0 else reached
            for name, value in kept.items():
                setattr(self, f"_{name}", value)
