"""Log the mean of each loss over the interval."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noether_core.callbacks.periodic import IntervalType, PeriodicCallback
from noether_core.callbacks.track_outputs import TrackAdditionalOutputsCallback
from noether_core.config.loop import OnlineLossCallbackConfig
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.emit.log_writer import ScalarWriter
from noether_core.schedule import Counter

_PREFIX = "loss/online/"


class OnlineLossCallback(TrackAdditionalOutputsCallback):
    """Track the hook's `losses`: a scalar, which is named `total`, or a dict from names to scalars.

    Logs `loss/online/{name}/{interval}`, the exact mean over all accumulation steps of the interval, in the loss's own unit;
    where some were NaN or infinite, also how many, as `loss/online/{name}/nonfinite/{interval}`. With `nonfinite: raise`, the
    default, such a loss is an error at the interval's end, after everything is logged; it names the loss, the update
    and the accumulation step.

    The front-ends' classes of this name add the backend; use those.
    """

    def __init__(
        self,
        callback_config: OnlineLossCallbackConfig,
        *,
        log_writer: ScalarWriter,
        output_path: str | Path | None = None,
        name: str | None = None,
        **trainer_arguments: Any,
    ) -> None:
        tracking = TrackAdditionalOutputsCallbackConfig(
            every_n_epochs=callback_config.every_n_epochs,
            every_n_updates=callback_config.every_n_updates,
            every_n_samples=callback_config.every_n_samples,
            patterns=[_PREFIX],
            reduce="mean",
            verbose=callback_config.verbose,
            nonfinite=callback_config.nonfinite,
        )
        super().__init__(tracking, log_writer=log_writer, output_path=output_path, name=name, **trainer_arguments)
        self.callback_config = callback_config

    def __str__(self) -> str:
        return PeriodicCallback.__str__(self)

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
        """Merge this step's losses into the interval; None has nothing to track.

        Raises:
            UpdateOutputError: for a loss that is no number.
            HookOrderError: if the hooks come in an order that would give wrong numbers.
        """
        named = losses if losses is None or isinstance(losses, Mapping) else {"total": losses}
        super().track_after_accumulation_step(
            update_counter=update_counter,
            update_outputs=None if named is None else {_PREFIX.removesuffix("/"): named},
            accumulation_steps=accumulation_steps,
            accumulation_step=accumulation_step,
        )

    def periodic_callback(self, *, interval_type: IntervalType, update_counter: Counter, **_: Any) -> None:
        """Log the means and start the next interval."""
        if interval_type != "eval" and not self._interval.keys:
            self._warn_once("losses", "a whole interval had no losses; hand them over: run.step(..., losses=loss)")
        super().periodic_callback(interval_type=interval_type, update_counter=update_counter)
