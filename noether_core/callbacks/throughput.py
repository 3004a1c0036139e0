"""Log how fast the training goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from noether_core.callbacks.periodic import PeriodicCallback
from noether_core.checked import listed, real, whole
from noether_core.config.loop import ThroughputCallbackConfig
from noether_core.errors import UpdateOutputError
from noether_core.schedule import Counter


def _pair(counts: Any, what: str) -> list[int]:
    update, sample = listed(counts, what)
    return [whole(update, what), whole(sample, what)]


class ThroughputCallback(PeriodicCallback):
    """Measure samples and updates per second over each interval.

    Logs, for each interval:

    - `profiling/samples_per_second/{interval}` and `profiling/updates_per_second/{interval}`, in 1/s;
    - `profiling/data_wait_seconds/{interval}`, in s, and `profiling/data_wait_share/{interval}`, between 0 and 1, where
      the loop hands over its times.

    An update takes as long as the sum of the `times` of its `track_after_update_step`, a mapping such as
    `{"data": seconds, "update": seconds}`; `data` is the wait for data. Without `times` it takes the wall time since the last
    update, which includes all that the loop does in between; a device that works on while the loop goes on is
    seen where the loop waits for it. The first interval has the compilation in it. Where no time passed, there is no rate.

    Args:
        callback_config: a `ThroughputCallbackConfig`.
        clock: returns seconds.
        **arguments: see `CallbackBase`.
    """

    callback_config: ThroughputCallbackConfig
    _kept: ClassVar = {"start": _pair, "seconds": real, "waited": real}

    def __init__(
        self,
        callback_config: ThroughputCallbackConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
        **arguments: Any,
    ) -> None:
        super().__init__(callback_config, **arguments)
        self._clock = clock
        self._last = clock()
        self._counted_at = -1  # the last update whose time is counted
        self._begin(0, 0)

    def _begin(self, update: int, sample: int) -> None:
        self._start = [update, sample]
        self._seconds = 0.0
        self._waited = math.nan  # no waits are known

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Start the clock."""
        super().before_training(update_counter=update_counter)
        self._begin(update_counter.update, update_counter.sample)
        self._last, self._counted_at = self._clock(), -1

    def track_after_update_step(
        self, *, update_counter: Counter, times: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        """Count the time of one update.

        Raises:
            UpdateOutputError: if `times` is neither None nor a mapping from names to seconds.
        """
        now, counted_at = self._clock(), update_counter.update
        if counted_at == self._counted_at:
            return  # a run calls this again where that was interrupted
        seconds, waited = self._seconds, self._waited
        if times is None:
            seconds += now - self._last
        else:
            checked = _checked(times)
            seconds += math.fsum(checked.values())
            if "data" in checked:
                waited = checked["data"] + (0.0 if math.isnan(waited) else waited)
        self._seconds, self._waited, self._last, self._counted_at = seconds, waited, now, counted_at

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Log the rates of the interval under way, if training ended in its middle."""
        if update_counter.update > self._start[0]:
            self._emit(update_counter)

    def _emit(self, update_counter: Counter) -> None:
        updates, samples = update_counter.update - self._start[0], update_counter.sample - self._start[1]
        seconds, waited = self._seconds, self._waited
        self._begin(update_counter.update, update_counter.sample)
        measured = {"samples_per_second": samples / seconds, "updates_per_second": updates / seconds} if seconds else {}
        if not math.isnan(waited):
            measured["data_wait_seconds"] = waited
            if seconds:
                measured["data_wait_share"] = waited / seconds
        for name, value in measured.items():
            self._add_scalar(self.callback_config.log_key(f"profiling/{name}"), value, ".5g")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as `PeriodicCallback` does; the time in between is not counted."""
        super().load_state_dict(state)
        self._last, self._counted_at = self._clock(), -1


def _checked(times: Mapping[str, float]) -> dict[str, float]:
    try:
        seconds = {str(name): float(value) for name, value in times.items()}
    except (AttributeError, TypeError, ValueError):
        seconds = {"": -1.0}
    if not all(0 <= value < math.inf for value in seconds.values()):
        raise UpdateOutputError(
            f"times is {times!r:.200}; expected a mapping from names to seconds of at least 0, such as"
            " {'data': 0.1, 'update': 0.4}, or None"
        )
    return seconds
