"""Callbacks: the hook protocol and the callbacks that implement it."""

from noether_core.callbacks.base import CallbackBase
from noether_core.callbacks.learning_rate import LearningRateCallback
from noether_core.callbacks.metrics import BestMetricCallback, MetricEarlyStopCallback
from noether_core.callbacks.online_loss import OnlineLossCallback
from noether_core.callbacks.periodic import PeriodicCallback
from noether_core.callbacks.progress import ProgressCallback
from noether_core.callbacks.throughput import ThroughputCallback
from noether_core.callbacks.track_outputs import TrackAdditionalOutputsCallback

__all__ = [
    "BestMetricCallback",
    "CallbackBase",
    "LearningRateCallback",
    "MetricEarlyStopCallback",
    "OnlineLossCallback",
    "PeriodicCallback",
    "ProgressCallback",
    "ThroughputCallback",
    "TrackAdditionalOutputsCallback",
]
