"""Track additional update outputs in JAX.

from noether_jax import Run

with Run("runs/mine", callbacks="callbacks.yaml") as run:
    for batch in batches:
        params, opt_state, outputs = train_step(params, opt_state, batch)
        run.step(update_outputs=outputs)
"""

from noether_core import (
    BestMetricCallback,
    BestMetricCallbackConfig,
    LearningRateCallbackConfig,
    LogWriter,
    MetricEarlyStopCallback,
    MetricEarlyStopCallbackConfig,
    OnlineLossCallbackConfig,
    ProbeCallbackConfig,
    ProgressCallback,
    ProgressCallbackConfig,
    ThroughputCallback,
    ThroughputCallbackConfig,
    TrackAdditionalOutputsCallbackConfig,
    __version__,
)
from noether_core.dependencies import needing
from noether_core.twin import twin_path

with needing("noether_jax", "jax"):
    from noether_jax.callbacks import LearningRateCallback, OnlineLossCallback, Run, TrackAdditionalOutputsCallback
    from noether_jax.output_tracker import OutputTracker, track_outputs
    from noether_jax.probes import ProbeCallback, probe
    from noether_jax.tracker_state import OutputTrackerState
    from noether_jax.twins import twin, twin_batch
    from noether_jax.windows import Tracked

__all__ = [
    "BestMetricCallback",
    "BestMetricCallbackConfig",
    "LearningRateCallback",
    "LearningRateCallbackConfig",
    "LogWriter",
    "MetricEarlyStopCallback",
    "MetricEarlyStopCallbackConfig",
    "OnlineLossCallback",
    "OnlineLossCallbackConfig",
    "OutputTracker",
    "OutputTrackerState",
    "ProbeCallback",
    "ProbeCallbackConfig",
    "ProgressCallback",
    "ProgressCallbackConfig",
    "Run",
    "ThroughputCallback",
    "ThroughputCallbackConfig",
    "TrackAdditionalOutputsCallback",
    "TrackAdditionalOutputsCallbackConfig",
    "Tracked",
    "__version__",
    "probe",
    "track_outputs",
    "twin",
    "twin_batch",
    "twin_path",
]
