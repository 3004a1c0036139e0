"""Track additional update outputs in JAX.

from noether_jax import Run

with Run("runs/mine", callbacks="callbacks.yaml") as run:
    for batch in batches:
        params, opt_state, outputs = train_step(params, opt_state, batch)
        run.step(update_outputs=outputs)
"""

from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig
from noether_jax.callbacks import Run, TrackAdditionalOutputsCallback

__all__ = ["LogWriter", "Run", "TrackAdditionalOutputsCallback", "TrackAdditionalOutputsCallbackConfig"]
