"""Say what callbacks do: frozen pydantic schemas, and the YAML that holds a list of them."""

from noether_core.config.base import CallbackBaseConfig, NamedCallbackConfig, PeriodicCallbackConfig
from noether_core.config.load import KINDS, CallbackConfig, check_together, load_callbacks, parse_callback
from noether_core.config.loop import (
    BestMetricCallbackConfig,
    LearningRateCallbackConfig,
    LoopConfig,
    MetricConfig,
    MetricEarlyStopCallbackConfig,
    OnlineLossCallbackConfig,
    ProbeCallbackConfig,
    ProgressCallbackConfig,
    ThroughputCallbackConfig,
)
from noether_core.config.tracking import (
    Reduction,
    TrackAdditionalOutputsCallbackConfig,
    check_last,
    check_weight,
    fields_of,
)

__all__ = [
    "KINDS",
    "BestMetricCallbackConfig",
    "CallbackBaseConfig",
    "CallbackConfig",
    "LearningRateCallbackConfig",
    "LoopConfig",
    "MetricConfig",
    "MetricEarlyStopCallbackConfig",
    "NamedCallbackConfig",
    "OnlineLossCallbackConfig",
    "PeriodicCallbackConfig",
    "ProbeCallbackConfig",
    "ProgressCallbackConfig",
    "Reduction",
    "ThroughputCallbackConfig",
    "TrackAdditionalOutputsCallbackConfig",
    "check_last",
    "check_together",
    "check_weight",
    "fields_of",
    "load_callbacks",
    "parse_callback",
]
