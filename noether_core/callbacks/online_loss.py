"""Log the mean of each loss over the interval."""

from __future__ import annotations

from typing import Any

from noether_core.callbacks.derived import DerivedOutputsCallback
from noether_core.config.loop import OnlineLossCallbackConfig
from noether_core.records import is_record_type
from noether_core.schedule import Counter


class OnlineLossCallback(DerivedOutputsCallback):
    """Track the hook's `losses`: a scalar, which is named `total`, or a dict from names to scalars.

    Logs `loss/online/{name}/{interval}`, the exact mean over all accumulation steps of the interval, in the loss's own unit;
    where some were NaN or infinite, also how many, as `loss/online/{name}/nonfinite/{interval}`. With `nonfinite: raise`, the
    default, such a loss is an error at the interval's end, after everything is logged; it names the loss, the update
    and the accumulation step.

    The front-ends' classes of this name add the backend; use those.
    """

    def derived(self, update_outputs: Any, losses: Any) -> dict[str, Any] | None:
        """Return the losses by their log names."""
        if losses is None:
            return None
        return {OnlineLossCallbackConfig.prefix: losses if is_record_type(type(losses)) else {"total": losses}}

    def _emit(self, update_counter: Counter) -> None:
        if not self.tracking.has_values:
            self._warn_once("losses", "a whole interval had no losses; hand them over: run.step(..., losses=loss)")
        super()._emit(update_counter)
