"""Select, reduce and emit a training step's update outputs, for any array library.

The front-ends `noether_jax` and `noether_torch` add the arrays; this package imports neither framework. Its parts, in
the order data passes through them: `config`, `select`, `reduce` (with `algebra`), `emit`. The hooks are in `callbacks`,
driven by `run`; `inspect` shows runs, `parity` compares them.
"""

# isort: off
from noether_core.ctrl_c import end_imports_of_command

end_imports_of_command()  # before all that takes a while
# isort: on

from noether_core.callbacks import (
    BestMetricCallback,
    CallbackBase,
    MetricEarlyStopCallback,
    PeriodicCallback,
    ProgressCallback,
    ThroughputCallback,
)
from noether_core.config.base import CallbackBaseConfig, PeriodicCallbackConfig
from noether_core.config.load import load_callbacks
from noether_core.config.loop import (
    BestMetricCallbackConfig,
    LearningRateCallbackConfig,
    MetricEarlyStopCallbackConfig,
    OnlineLossCallbackConfig,
    ProbeCallbackConfig,
    ProgressCallbackConfig,
    ThroughputCallbackConfig,
)
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.dependencies import own_version
from noether_core.emit.capsule import Capsule, read_capsule
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
    RunDirectoryError,
    RunFormatError,
    RunLockedError,
    ScheduleError,
    UpdateOutputError,
)
from noether_core.schedule import Interval, TrainingIteration, UpdateCounter

__version__ = own_version()

__all__ = [
    "BestMetricCallback",
    "BestMetricCallbackConfig",
    "CallbackBase",
    "CallbackBaseConfig",
    "Capsule",
    "ConfigFileError",
    "DuplicateKeyError",
    "HookOrderError",
    "Interval",
    "LearningRateCallbackConfig",
    "LogWriter",
    "MetricEarlyStopCallback",
    "MetricEarlyStopCallbackConfig",
    "MissingDependencyError",
    "MissingKeyError",
    "NoetherError",
    "NonFiniteError",
    "OnlineLossCallbackConfig",
    "PeriodicCallback",
    "PeriodicCallbackConfig",
    "ProbeCallbackConfig",
    "ProgressCallback",
    "ProgressCallbackConfig",
    "RunDirectoryError",
    "RunFormatError",
    "RunLockedError",
    "RunReader",
    "ScheduleError",
    "ThroughputCallback",
    "ThroughputCallbackConfig",
    "TrackAdditionalOutputsCallbackConfig",
    "Tracker",
    "TrainingIteration",
    "UpdateCounter",
    "UpdateOutputError",
    "__version__",
    "export_run",
    "load_callbacks",
    "read_capsule",
    "read_run",
]
