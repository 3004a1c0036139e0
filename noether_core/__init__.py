"""Select, reduce and emit a training step's update outputs, for any array library.

The front-ends `noether_jax` and `noether_torch` add the arrays; this package imports neither framework. Its parts, in
the order data passes through them: `config`, `select`, `reduce` (with `backend` and `accumulate`), `finish`, `emit`. The
hooks are in `callbacks`, driven by `run`; `parity` compares runs.
"""

from noether_core.callbacks import CallbackBase, PeriodicCallback
from noether_core.config import (
    CallbackBaseConfig,
    PeriodicCallbackConfig,
    TrackAdditionalOutputsCallbackConfig,
    load_callbacks,
)
from noether_core.emit.export import export_run
from noether_core.emit.log_writer import LogWriter
from noether_core.emit.reader import RunReader, read_run
from noether_core.emit.trackers import Tracker
from noether_core.errors import (
    ConfigFileError,
    DuplicateKeyError,
    HookOrderError,
    MissingDependencyError,
    MissingKeyError,
    NoetherError,
    NonFiniteError,
    RunFormatError,
    ScheduleError,
    UpdateOutputError,
)
from noether_core.schedule import Interval, TrainingIteration, UpdateCounter

__all__ = [
    "CallbackBase",
    "CallbackBaseConfig",
    "ConfigFileError",
    "DuplicateKeyError",
    "HookOrderError",
    "Interval",
    "LogWriter",
    "MissingDependencyError",
    "MissingKeyError",
    "NoetherError",
    "NonFiniteError",
    "PeriodicCallback",
    "PeriodicCallbackConfig",
    "RunFormatError",
    "RunReader",
    "ScheduleError",
    "TrackAdditionalOutputsCallbackConfig",
    "Tracker",
    "TrainingIteration",
    "UpdateCounter",
    "UpdateOutputError",
    "export_run",
    "load_callbacks",
    "read_run",
]
