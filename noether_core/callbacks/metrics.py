"""Watch a metric that another callback logs."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Protocol, cast

from noether_core.callbacks.periodic import PeriodicCallback
from noether_core.checked import real, whole, whole_or_never
from noether_core.config.loop import BestMetricCallbackConfig, MetricConfig, MetricEarlyStopCallbackConfig
from noether_core.emit.log_writer import ScalarWriter
from noether_core.errors import NoetherError, listing, suggest
from noether_core.schedule import Counter


class _LogReader(ScalarWriter, Protocol):
    def current_values(self) -> dict[str, Any]:
        """Return what is logged so far for the current update."""


class MetricCallback(PeriodicCallback):
    """Keep the best value of `source_metric_key`, looking whether the update's entry has it.

    It looks at each interval's end, or later in that update, when the loop logs values of its own (`Run.log`); and after each
    evaluation (`Run.evaluate`), whatever the interval. It looks once at an update's value.

    `Run` calls such a callback after all the others, wherever it stands in the list; a loop of your own must list it last. An
    update whose entry lacks the metric says nothing about it; NaN is never the best.

    Raises:
        NoetherError: if the log writer cannot be read.
    """

    reads_log: ClassVar[bool] = True
    _kept: ClassVar = {"best": real, "best_at": whole, "seen_at": whole_or_never}

    def __init__(self, callback_config: MetricConfig, **arguments: Any) -> None:
        super().__init__(callback_config, **arguments)
        if not callable(getattr(self.log_writer, "current_values", None)):
            raise NoetherError(
                f"{self} reads what is logged, and its log_writer {type(self.log_writer).__name__} has no current_values();"
                " give a LogWriter, or add that method"
            )
        self._log = cast("_LogReader", self.log_writer)
        self._source = callback_config.source_metric_key
        self._sign = -1 if callback_config.higher_is_better else 1
        self._best = math.nan  # no value yet
        self._best_at = 0
        self._seen_at = -1  # the last update whose value was looked at
        self._due_at = -1  # an update at which an interval ended whose value has not come yet
        self._absent: dict[str, Any] | None = None  # what that update logged instead
        self._is_said = False

    def _emit(self, update_counter: Counter) -> None:
        if self._absent is not None:
            self._say_that_it_is_absent(self._absent)
        self._due_at = update_counter.update
        self._look_for_value(update_counter)

    def after_log(self, *, update_counter: Counter, **_: Any) -> None:
        """Look, if an interval ended at this update and its value had not come."""
        if self._due_at == update_counter.update:
            self._look_for_value(update_counter)

    def at_eval(self, *, update_counter: Counter, **_: Any) -> None:
        """Look at what the evaluation logged."""
        self._look_for_value(update_counter)

    def _look_for_value(self, update_counter: Counter) -> None:
        """Look at the update's value, if it has one that was not looked at."""
        values = self._log.current_values()
        if not isinstance(values.get(self._source), bool | int | float):
            self._absent = values
        elif self._seen_at != update_counter.update:
            self._absent, self._seen_at = None, update_counter.update
            self._look(update_counter)

    def _look(self, update_counter: Counter) -> None:
        """Do what the update's value asks for."""

    def _is_better(self, update_counter: Counter, min_delta: float = 0.0) -> bool:
        """Tell whether this update's value of the source is better than the best so far, and note it."""
        value = self._log.current_values()[self._source]
        is_better = math.isnan(self._best) or self._sign * value < self._sign * self._best - min_delta
        if math.isnan(value) or not is_better:
            return False
        self._best, self._best_at = float(value), update_counter.update
        return True

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Say so if the metric never came."""
        if self._absent is not None:
            self._say_that_it_is_absent(self._absent)

    def _say_that_it_is_absent(self, values: dict[str, Any]) -> None:
        if not self._is_said and math.isnan(self._best):
            self._is_said = True
            self.logger.warning(
                "%s: %r is not a number that this update logged; it logged %s.%s Name a log key whole, as it is logged, and"
                " use its interval here",
                self,
                self._source,
                listing(values),
                suggest(self._source, values),
            )


class BestMetricCallback(MetricCallback):
    """Log `{target}/at_best/{source}` for each target at every update at which the source is better than ever before.

    A target is a whole log key of the same update's entry, or a literal substring of some; without targets it is the source.
    """

    callback_config: BestMetricCallbackConfig

    def _look(self, update_counter: Counter) -> None:
        if self._is_better(update_counter):
            for target, value in self._targets().items():
                self._add_scalar(self.callback_config.log_key(target), value, ".5f")

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Look once more: the others logged what they had of an interval that training ended in the middle of."""
        self._look_for_value(update_counter)
        super().after_training(update_counter=update_counter)

    def _targets(self) -> dict[str, float]:
        values = {
            key: value
            for key, value in self._log.current_values().items()
            if isinstance(value, bool | int | float) and "/at_best/" not in key
        }
        found = {}
        for target in self.callback_config.target_metric_keys or [self._source]:
            names = [target] if target in values else [key for key in values if target in key]
            found.update({key: values[key] for key in names})
            if not names:
                self.logger.warning(
                    "%s: the target %r is neither a log key of this update nor part of one; it logged %s.%s",
                    self,
                    target,
                    listing(values),
                    suggest(target, values),
                )
        return found


class MetricEarlyStopCallback(MetricCallback):
    """Set `should_stop` once `patience` interval ends in a row had the source without an improvement on the best.

    `Run.is_finished` is true from then on; leave the loop at it, and the run ends as at any other end:

        for batch in batches:
            run.step(train_step(batch))
            if run.is_finished:
                break
    """

    callback_config: MetricEarlyStopCallbackConfig
    _kept: ClassVar = {**MetricCallback._kept, "waited": whole}
    _waited = 0

    def _look(self, update_counter: Counter) -> None:
        is_better = self._is_better(update_counter, self.callback_config.min_delta)
        self._waited = 0 if is_better else self._waited + 1
        if self._waited >= self.callback_config.patience and not self.should_stop:
            self.should_stop = True
            self.logger.info(
                "training ends at %s: in %d interval ends in a row %r was not better than %s, its value at update %d",
                update_counter.cur_iteration,
                self._waited,
                self._source,
                self._best,
                self._best_at,
            )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on as `PeriodicCallback` does; a training that was ended stays so."""
        super().load_state_dict(state)
        self.should_stop = self._waited >= self.callback_config.patience
