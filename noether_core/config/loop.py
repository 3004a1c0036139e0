"""Define the configs of the callbacks that a training loop wants beside the tracking one. Each says what it logs, and where."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import Field, StrictBool, StrictStr, field_validator

from noether_core.config.base import NamedCallbackConfig, PositiveInt, Strings
from noether_core.config.naming import Naming, Template, checked_template, naming_of, refuse_one_name
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig


class LoopConfig(NamedCallbackConfig):
    """Add what is logged: nothing, unless a subclass says so."""

    @property
    def logs(self) -> tuple[str, ...]:
        """Return the names it logs under; `{name}` stands for any that are known only when they come."""
        return ()


class OwnValuesConfig(LoopConfig):
    """Add what is logged of values that are the callback's own, and how it is named.

    Attributes:
        logged: the keys of what it logs; `{name}` stands for any that are known only when they come.
        log_as: a template of the names, with the fields `{key}` and `{interval}`; None: `{key}/{interval}`.
    """

    logged: ClassVar[tuple[str, ...]] = ()
    log_as: Template | None = None

    @field_validator("log_as")
    @classmethod
    def _is_a_template(cls, value: str | None) -> str | None:
        if value is not None:
            checked_template(value, ("key", "interval"))
            refuse_one_name(value, tracked=", ".join(cls.logged), is_one=False, reductions=())
        return value

    @property
    def naming(self) -> Naming:
        """Return how what is logged is named."""
        return naming_of(self.log_as or "{key}/{interval}", str(self.interval))

    def log_key(self, key: str) -> str:
        """Return the name under which the value of a key is logged."""
        return self.naming.name(key, "")

    @property
    def logs(self) -> tuple[str, ...]:
        """Return the names it logs under; `{name}` stands for any that are known only when they come."""
        return tuple(map(self.log_key, self.logged))

    def _tracking(self, prefix: str, **fields: Any) -> TrackAdditionalOutputsCallbackConfig:
        own = self.model_dump(include={"every_n_epochs", "every_n_updates", "every_n_samples", "verbose", "log_as"})
        return TrackAdditionalOutputsCallbackConfig(patterns=[prefix], **own, **fields)


class OnlineLossCallbackConfig(OwnValuesConfig):
    """Log the mean of each loss over the interval, and stop at one that is not finite."""

    prefix: ClassVar[str] = "loss/online"
    logged = ("loss/online/{name}",)  # `total` for a lone number
    name: Literal["OnlineLossCallback"] = "OnlineLossCallback"
    verbose: StrictBool = False
    nonfinite: Literal["raise", "propagate", "skip"] = "raise"

    @property
    def tracking(self) -> TrackAdditionalOutputsCallbackConfig:
        """Return the config that tracks the losses, whose names begin with `prefix`."""
        return self._tracking(self.prefix + "/", reduce="mean", nonfinite=self.nonfinite)


class LearningRateCallbackConfig(OwnValuesConfig):
    """Log the learning rate of the interval's last update.

    Attributes:
        key: the update output that holds it: a number, or a dict from names to numbers.
        source: in Python only, instead of `key`: an optimizer with `param_groups`, a state with `hyperparams` (optax's
            `inject_hyperparams`), or a function of the update's number, counted from 0 as optax's schedules do, that returns
            one of these, a number, or a dict from names to numbers. Of a PyTorch optimizer the rate is that of its last
            `step`; anything else is read at the interval's end. Never written to a file.
    """

    prefix: ClassVar[str] = "optim/lr"
    logged = ("optim/lr", "optim/lr/{name}")  # a parameter group's, where there are several
    name: Literal["LearningRateCallback"] = "LearningRateCallback"
    key: StrictStr | None = Field(default=None, min_length=1)
    source: Any = Field(default=None, exclude=True, repr=False)
    verbose: StrictBool = False

    @field_validator("source")
    @classmethod
    def _is_no_name(cls, value: Any) -> Any:
        if isinstance(value, str | bytes | bool):
            raise ValueError(
                f"got source={value!r:.80}; expected an optimizer, its state or a function. The name of an update output is"
                " `key`"
            )
        return value

    @property
    def tracking(self) -> TrackAdditionalOutputsCallbackConfig:
        """Return the config that tracks the learning rates, whose names begin with `prefix`."""
        return self._tracking(self.prefix, reduce="last", replicated=[self.prefix])


class ThroughputCallbackConfig(OwnValuesConfig):
    """Log how many samples and updates pass per second; where the loop hands over its times, also the wait for data."""

    logged = (
        "profiling/samples_per_second",
        "profiling/updates_per_second",
        "profiling/data_wait_seconds",
        "profiling/data_wait_share",
    )
    name: Literal["ThroughputCallback"] = "ThroughputCallback"
    verbose: StrictBool = False


class ProgressCallbackConfig(LoopConfig):
    """Say through `logging` how far the training is; with `bar`, also show a bar where there is a terminal. Logs no values."""

    name: Literal["ProgressCallback"] = "ProgressCallback"
    bar: StrictBool = False


class MetricConfig(LoopConfig):
    """Name a value of the log to watch, as a whole log key (`loss/U10`, or what `log_as` makes), and which way is better."""

    source_metric_key: StrictStr = Field(min_length=1)
    higher_is_better: StrictBool


class BestMetricCallbackConfig(MetricConfig):
    """Log what metrics were at the update at which another one was best so far.

    Attributes:
        target_metric_keys: what is logged then: whole log keys, or literal substrings of them; None: the source itself.
    """

    name: Literal["BestMetricCallback"] = "BestMetricCallback"
    target_metric_keys: Strings | None = Field(default=None, min_length=1)
    verbose: StrictBool = False

    @field_validator("target_metric_keys", mode="before")
    @classmethod
    def _name_something(cls, value: Any) -> Any:
        if isinstance(value, list) and "" in value:
            raise ValueError("holds an empty string, which every log key contains; name the targets")
        return value

    @property
    def logs(self) -> tuple[str, ...]:
        """Return the names it logs under, a substring standing for the log keys that contain it."""
        return tuple(self.log_key(target) for target in self.target_metric_keys or [self.source_metric_key])

    def log_key(self, target: str) -> str:
        """Return the name under which a target is logged."""
        return f"{target}/at_best/{self.source_metric_key}"


class MetricEarlyStopCallbackConfig(MetricConfig):
    """End training when a metric stops improving. Logs no values.

    Attributes:
        patience: how many interval ends in a row that have the metric may pass without an improvement.
        min_delta: by how much more than nothing a value must be better to count as an improvement.
    """

    name: Literal["MetricEarlyStopCallback"] = "MetricEarlyStopCallback"
    patience: PositiveInt
    min_delta: float = Field(default=0.0, strict=True, ge=0.0)

    @field_validator("min_delta")
    @classmethod
    def _is_finite(cls, value: float) -> float:
        if not math.isfinite(value):
            raise ValueError(f"got {value}; no value could improve by as much: give a finite number of at least 0")
        return value


class ProbeCallbackConfig(LoopConfig):
    """Save what updates computed, for a comparison with another run: the statistics at an interval, and arrays. Logs no values.

    Attributes:
        every_n_updates: the updates of which there are statistics: those that this divides.
        arrays: the first so many updates, of which arrays are saved too.
        arrays_at: other updates of which arrays are saved; updates are counted from 1.
        array_limit: how many bytes an array may have to be saved whole, in elements of four bytes; of a larger one a sample is.
    """

    name: Literal["ProbeCallback"] = "ProbeCallback"
    every_n_updates: PositiveInt | None = 100
    arrays: int = Field(default=12, strict=True, ge=0)
    arrays_at: list[PositiveInt] = Field(default=[])
    array_limit: PositiveInt = 2**20

    @field_validator("every_n_epochs", "every_n_samples")
    @classmethod
    def _counts_updates(cls, value: int | None) -> int | None:
        if value is not None:
            raise ValueError("a ProbeCallback counts updates, the same in every run; give every_n_updates")
        return value


LOOP_CONFIGS: tuple[type[LoopConfig], ...] = (
    OnlineLossCallbackConfig,
    LearningRateCallbackConfig,
    ThroughputCallbackConfig,
    ProgressCallbackConfig,
    BestMetricCallbackConfig,
    MetricEarlyStopCallbackConfig,
    ProbeCallbackConfig,
)
