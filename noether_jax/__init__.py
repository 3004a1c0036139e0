"""Track additional update outputs in JAX.

from noether_jax import Run

with Run("runs/mine", callbacks="callbacks.yaml") as run:
    for batch in batches:
        params, opt_state, outputs = train_step(params, opt_state, batch)
        run.step(update_outputs=outputs)
"""

from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig
from noether_jax.callbacks import Run, TrackAdditionalOutputsCallback
from noether_jax.fused import Tracked
from noether_jax.tracker import OutputTracker, TrackerState, track_outputs

__all__ = [
    "LogWriter",
    "OutputTracker",
    "Run",
    "TrackAdditionalOutputsCallback",
    "TrackAdditionalOutputsCallbackConfig",
    "Tracked",
    "TrackerState",
    "track_outputs",
]
