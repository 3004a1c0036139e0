"""Log how fast the training goes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from noether_core.callbacks.periodic import IntervalType, PeriodicCallback
from noether_core.config.loop import ThroughputCallbackConfig
from noether_core.emit.log_writer import ScalarWriter
from noether_core.errors import NoetherError, UpdateOutputError
from noether_core.schedule import Counter


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
        log_writer: a `LogWriter`.
        output_path: not used.
        name: the callback's name among others.
        clock: returns seconds.
        **trainer_arguments: see `CallbackBase`.
    """

    def __init__(
        self,
        callback_config: ThroughputCallbackConfig,
        *,
        log_writer: ScalarWriter,
        output_path: str | Path | None = None,
        name: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **trainer_arguments: Any,
    ) -> None:
        super().__init__(
            callback_config, log_writer=log_writer, output_path=output_path, name=name, **trainer_arguments
        )
        self.verbose = callback_config.verbose
        self._clock = clock
        self._last = clock()
        self._start = (0, 0)  # updates and samples at the interval's start
        self._seconds = 0.0
        self._waited: float | None = None

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Start the clock."""
        super().before_training(update_counter=update_counter)
        self._begin(update_counter)
        self._last = self._clock()

    def _begin(self, update_counter: Counter) -> None:
        self._start = (update_counter.update, update_counter.sample)
        self._seconds, self._waited = 0.0, None

    def track_after_update_step(
        self, *, update_counter: Counter, times: Mapping[str, float] | None = None, **_: Any
    ) -> None:
        """Count the time of one update.

        Raises:
            UpdateOutputError: if `times` is neither None nor a mapping from names to seconds.
        """
        now = self._clock()
        if times is None:
            self._seconds += now - self._last
        else:
            seconds = _checked(times)
            self._seconds += math.fsum(seconds.values())
            if "data" in seconds:
                self._waited = (self._waited or 0.0) + seconds["data"]
        self._last = now

    def periodic_callback(self, *, interval_type: IntervalType, update_counter: Counter, **_: Any) -> None:
        """Log the interval's rates and start the next."""
        if interval_type != "eval":
            self._emit(update_counter)

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Log the rates of the interval under way, if training ended in its middle."""
        if update_counter.update > self._start[0]:
            self._emit(update_counter)

    def _emit(self, update_counter: Counter) -> None:
        updates, samples = update_counter.update - self._start[0], update_counter.sample - self._start[1]
        seconds, waited = self._seconds, self._waited
        self._begin(update_counter)
        measured = {"samples_per_second": samples / seconds, "updates_per_second": updates / seconds} if seconds else {}
        if waited is not None:
            measured["data_wait_seconds"] = waited
            if seconds:
                measured["data_wait_share"] = waited / seconds
        for name, value in measured.items():
            self.log_writer.add_scalar(
                key=f"profiling/{name}/{self.interval}",
                value=value,
                logger=self.logger if self.verbose else None,
                format_str=".5g" if self.verbose else None,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the times of the interval under way."""
        waited = math.nan if self._waited is None else self._waited
        return {**super().state_dict(), "start": list(self._start), "seconds": self._seconds, "waited": waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned; the time in between is not counted.

        Raises:
            NoetherError: for a state of another form.
        """
        super().load_state_dict(state)
        try:
            update, sample = (int(count) for count in state["start"])
            seconds, waited = float(state["seconds"]), float(state["waited"])
        except (KeyError, TypeError, ValueError) as error:
            raise NoetherError(f"{self} got the state {state!r:.200}; load what its state_dict() returned") from error
        self._start, self._seconds = (update, sample), seconds
        self._waited = None if math.isnan(waited) else waited
        self._last = self._clock()


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
