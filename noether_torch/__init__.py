"""Track additional update outputs in PyTorch.

from noether_torch import Run

with Run("runs/mine", callbacks="callbacks.yaml") as run:
    for batch in batches:
        run.step(update_outputs=train_step(batch))
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

with needing("noether_torch", "torch"):
    from noether_torch.callbacks import LearningRateCallback, OnlineLossCallback, Run, TrackAdditionalOutputsCallback
    from noether_torch.probes import ProbeCallback, probe
    from noether_torch.twins import twin, twin_batch

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
    "ProbeCallback",
    "ProbeCallbackConfig",
    "ProgressCallback",
    "ProgressCallbackConfig",
    "Run",
    "ThroughputCallback",
    "ThroughputCallbackConfig",
    "TrackAdditionalOutputsCallback",
    "TrackAdditionalOutputsCallbackConfig",
    "__version__",
    "probe",
    "twin",
    "twin_batch",
    "twin_path",
]
