"""Callbacks: the hook protocol and the callbacks that implement it."""

from noether_core.callbacks.base import CallbackBase
from noether_core.callbacks.periodic import PeriodicCallback
from noether_core.callbacks.track_outputs import TrackAdditionalOutputsCallback

__all__ = ["CallbackBase", "PeriodicCallback", "TrackAdditionalOutputsCallback"]
