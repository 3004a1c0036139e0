"""Track additional update outputs in PyTorch.

from noether_torch import Run

with Run("runs/mine", callbacks="callbacks.yaml") as run:
    for batch in batches:
        run.step(update_outputs=train_step(batch))
"""

from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig
from noether_torch.callbacks import Run, TrackAdditionalOutputsCallback

__all__ = ["LogWriter", "Run", "TrackAdditionalOutputsCallback", "TrackAdditionalOutputsCallbackConfig"]
