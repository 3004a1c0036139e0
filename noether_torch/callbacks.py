"""Give the core's callbacks and run their PyTorch backend."""

from __future__ import annotations

from typing import ClassVar

from noether_core import callbacks, run
from noether_core.callbacks.build import CORE_CLASSES, CallbackClasses
from noether_core.config.loop import LearningRateCallbackConfig, OnlineLossCallbackConfig
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
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


class OnlineLossCallback(callbacks.OnlineLossCallback):
    """Log the mean of each PyTorch loss over the interval, and stop at one that is not finite.

    Args:
        callback_config: an `OnlineLossCallbackConfig`.
        log_writer: a `LogWriter`.
        output_path: not used.
        name: the callback's name among others.
    """

    backend = BACKEND


class LearningRateCallback(callbacks.LearningRateCallback):
    """Log the learning rate, from a PyTorch update output or from an optimizer.

    Args:
        callback_config: a `LearningRateCallbackConfig`.
        log_writer: a `LogWriter`.
        output_path: not used.
        name: the callback's name among others.
    """

    backend = BACKEND


class Run(run.Run):
    """Track a PyTorch training run; see `noether_core.run.Run` for the arguments."""

    backend = BACKEND
    callback_classes: ClassVar[CallbackClasses] = {
        **CORE_CLASSES,
        LearningRateCallbackConfig: LearningRateCallback,
        OnlineLossCallbackConfig: OnlineLossCallback,
        TrackAdditionalOutputsCallbackConfig: TrackAdditionalOutputsCallback,
    }
