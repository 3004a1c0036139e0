"""Give the core's callbacks (see `CallbackBase` for their arguments) and run PyTorch."""

from __future__ import annotations

from typing import ClassVar

from noether_core import callbacks, run
from noether_core.callbacks.build import CORE_CLASSES, CallbackClasses
from noether_core.config.loop import LearningRateCallbackConfig, OnlineLossCallbackConfig
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_torch.backend import BACKEND


class TrackAdditionalOutputsCallback(callbacks.TrackAdditionalOutputsCallback):
    """Reduce the PyTorch update outputs that a config names, and log or save them at every interval's end."""

    backend = BACKEND


class OnlineLossCallback(callbacks.OnlineLossCallback):
    """Log the mean of each PyTorch loss over the interval, and stop at one that is not finite."""

    backend = BACKEND


class LearningRateCallback(callbacks.LearningRateCallback):
    """Log the learning rate, from a PyTorch update output or from an optimizer."""

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
