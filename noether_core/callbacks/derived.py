"""Track what is not among the update outputs under its own name, such as the losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from noether_core.callbacks.periodic import PeriodicCallback
from noether_core.callbacks.track_outputs import TrackAdditionalOutputsCallback
from noether_core.config.loop import LearningRateCallbackConfig, OnlineLossCallbackConfig
from noether_core.emit.log_writer import ScalarWriter
from noether_core.interrupts import Mark
from noether_core.reduce.backend import Backend
from noether_core.schedule import Counter


class DerivedOutputsCallback(PeriodicCallback, ABC):
    """Hold a tracking callback, and give it the update outputs that a subclass makes of what the hooks get.

    What is held goes by this callback's name in messages and in the log, and has its state.
    """

    backend: Backend

    def __init__(
        self,
        callback_config: OnlineLossCallbackConfig | LearningRateCallbackConfig,
        *,
        log_writer: ScalarWriter,
        **arguments: Any,
    ) -> None:
        super().__init__(callback_config, log_writer=log_writer, **arguments)
        self.tracking = TrackAdditionalOutputsCallback(
            callback_config.tracking, log_writer=log_writer, title=str(self), backend=self.backend
        )

    @abstractmethod
    def derived(self, update_outputs: Any, losses: Any) -> dict[str, Any] | None:
        """Return the update outputs to track; None where there are none."""

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Note where training starts."""
        super().before_training(update_counter=update_counter)
        self.tracking.before_training(update_counter=update_counter)

    def track_after_accumulation_step(
        self, *, update_counter: Counter, update_outputs: Any = None, losses: Any = None, **step: Any
    ) -> None:
        """Merge this step's values into the interval; see `TrackAdditionalOutputsCallback` for what is raised."""
        derived = self.derived(update_outputs, losses)
        super().track_after_accumulation_step(update_counter=update_counter)
        self.tracking.track_after_accumulation_step(update_counter=update_counter, update_outputs=derived, **step)

    def undo_accumulation_step(self) -> None:
        """Forget the last `track_after_accumulation_step`."""
        self.tracking.undo_accumulation_step()

    def has_tracked(self, update: int, accumulation_step: int) -> bool:
        """Tell whether the last `track_after_accumulation_step` was this step's."""
        return self.tracking.has_tracked(update, accumulation_step)

    def stateful(self) -> Sequence[object]:
        """Return the objects whose attributes are the callback's state."""
        return [self, *self.tracking.stateful()]

    def mark(self) -> Callable[[], None]:
        """Return a function that brings the callback back to where it stands."""
        own, held = Mark([self]), self.tracking.mark()

        def go_back() -> None:
            own.go_back()
            held()

        return go_back

    def _emit(self, update_counter: Counter) -> None:
        self.tracking._advance(update_counter)

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Log the interval under way, if training ended in its middle."""
        self.tracking.after_training(update_counter=update_counter)

    def state_dict(self) -> dict[str, Any]:
        """Return the interval under way; see `TrackAdditionalOutputsCallback.state_dict`."""
        return {**self.tracking.state_dict(), **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned.

        Raises:
            NoetherError: for a state of another form; the callback stays as it was.
        """
        with Mark(self.stateful()):
            self.tracking.load_state_dict(state)
            super().load_state_dict(state)
