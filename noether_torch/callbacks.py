"""Give the core's callback and run their PyTorch backend."""

from __future__ import annotations

from noether_core import callbacks, run
from noether_torch.backend import BACKEND


class TrackAdditionalOutputsCallback(callbacks.TrackAdditionalOutputsCallback):
    """Reduce the PyTorch update outputs that a config names, and log or save them at every interval's end.

    Args:
        callback_config: a `TrackAdditionalOutputsCallbackConfig`.
        log_writer: a `LogWriter`.
        output_path: the run directory; needed with `save_output`.
        name: the callback's name among others.
    """

    backend = BACKEND


class Run(run.Run):
    """Track a PyTorch training run; see `noether_core.run.Run` for the arguments."""

    backend = BACKEND
    callback_class = TrackAdditionalOutputsCallback
