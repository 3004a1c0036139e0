"""Say how far the training is."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, ClassVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from noether_core.callbacks.periodic import PeriodicCallback
from noether_core.checked import whole
from noether_core.config.loop import ProgressCallbackConfig
from noether_core.schedule import Counter


class ProgressCallback(PeriodicCallback):
    """Tell `logging`, at level INFO, where training is, how much of it that is, and how long the rest will take.

    `E1_U20_S640 of E5_U100_S3200: 20.0 %, 0:02:40 left`; where no end is known, `E1_U20_S640, 1.5 updates/s`. The rest is
    reckoned from the updates since this process began. Nothing goes to the log writer.

    Args:
        callback_config: a `ProgressCallbackConfig`.
        clock: returns seconds.
        console: where the bar is shown, if it is a terminal; by default standard output.
        **arguments: see `CallbackBase`.
    """

    _kept: ClassVar = {"update": whole}

    def __init__(
        self,
        callback_config: ProgressCallbackConfig,
        *,
        clock: Callable[[], float] = time.perf_counter,
        console: Console | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(callback_config, **arguments)
        self._clock = clock
        self._start_from(0)
        console = console or Console()
        self._bar = None
        if callback_config.bar and console.is_terminal:
            columns = (TextColumn("updates"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("updates", total=None)

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Start the clock, and the bar."""
        super().before_training(update_counter=update_counter)
        self._start_from(update_counter.update)
        if self._bar is not None:
            end = getattr(update_counter, "end_iteration", None)
            self._bar.update(self._task, total=end and end.update, completed=update_counter.update)
            self._bar.start()

    def _start_from(self, update: int) -> None:
        self._began, self._from, self._update = self._clock(), update, update

    def track_after_update_step(self, *, update_counter: Counter, times: Any = None, **_: Any) -> None:
        """Note the update, and move the bar."""
        self._update = update_counter.update
        if self._bar is not None:
            self._bar.update(self._task, completed=update_counter.update)

    def _emit(self, update_counter: Counter) -> None:
        self.logger.info("%s", self._line(update_counter))

    def _line(self, update_counter: Counter) -> str:
        seconds, updates = self._clock() - self._began, update_counter.update - self._from
        now, end = update_counter.cur_iteration, getattr(update_counter, "end_iteration", None)
        if not end or not end.update:
            return f"{now}, {updates / seconds:.3g} updates/s" if seconds else f"{now}"
        left = timedelta(seconds=round(seconds / max(1, updates) * max(0, end.update - update_counter.update)))
        return f"{now} of {end}: {update_counter.update / end.update:.1%}, {left} left".replace("%", " %")

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Take the bar down."""
        if self._bar is not None:
            self._bar.stop()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as `PeriodicCallback` does; the rest is reckoned from here on."""
        super().load_state_dict(state)
        self._start_from(self._update)
