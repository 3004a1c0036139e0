"""Give the core's callbacks (see `CallbackBase` for their arguments) and run PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from noether_core import callbacks
from noether_core.callbacks.build import CORE_CLASSES, CallbackClasses, Callbacks, Keys
from noether_core.config.loop import LearningRateCallbackConfig, OnlineLossCallbackConfig, ProbeCallbackConfig
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import NoetherError
from noether_core.probes.callback import probe_callbacks
from noether_core.probes.naming import Names
from noether_core.probes.run import ProbedRun
from noether_core.reduce.exchange import Exchange
from noether_core.schedule import Counter
from noether_core.select import flatten
from noether_torch.backend import BACKEND
from noether_torch.dtensors import loggable
from noether_torch.probes import ProbeCallback
from noether_torch.processes import group_exchange
from noether_torch.state import TensorState
from noether_torch.used_rates import UsedRates
from noether_torch.watching import Watched

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_is_compiling, _step = torch.compiler.is_dynamo_compiling, ProbedRun.step


@_disable_dynamo  # as torch.compiler.disable, which imports the compiler at once: over a second
def _call_outside_of_torch_compile(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function with real tensors, where `torch.compile` traces: the compiled function breaks here."""
    return function(*arguments, **named)


class TrackAdditionalOutputsCallback(TensorState, callbacks.TrackAdditionalOutputsCallback):
    """Reduce the PyTorch update outputs that a config names, and log or save them at every interval's end."""

    backend = BACKEND


class OnlineLossCallback(TensorState, callbacks.OnlineLossCallback):
    """Log the mean of each PyTorch loss over the interval, and stop at one that is not finite."""

    backend = BACKEND


class LearningRateCallback(TensorState, callbacks.LearningRateCallback):
    """Log the learning rate, from a PyTorch update output or from an optimizer.

    Of an optimizer it is the rate that its last `step` used, whether the scheduler's `step` came since or not.
    """

    backend = BACKEND

    def __init__(self, callback_config: LearningRateCallbackConfig, **arguments: Any) -> None:
        super().__init__(callback_config, **arguments)
        self._used = UsedRates()

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Note where training starts, and listen to the optimizer from here on."""
        super().before_training(update_counter=update_counter)
        self._used.watch(self.callback_config.source)

    def _rates(self, update: int) -> Mapping[str, Any]:
        return self._used(update) or super()._rates(update)

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Log the learning rate of an interval that training ended in the middle of, and listen no more."""
        super().after_training(update_counter=update_counter)
        self._used.release()


class Run(TensorState, ProbedRun):
    """Track a PyTorch training run.

    Args:
        path, keys, callbacks: see `noether_core.run.Run`.
        process_group: the processes that train together, if they are not all of `torch.distributed`'s.
        **arguments: see `noether_core.run.Run`.
    """

    backend = BACKEND
    callback_classes: ClassVar[CallbackClasses] = {
        **CORE_CLASSES,
        LearningRateCallbackConfig: LearningRateCallback,
        OnlineLossCallbackConfig: OnlineLossCallback,
        ProbeCallbackConfig: ProbeCallback,
        TrackAdditionalOutputsCallbackConfig: TrackAdditionalOutputsCallback,
    }

    def __init__(
        self,
        path: str | Path,
        keys: Keys | None = None,
        callbacks: Callbacks | None = None,
        *,
        process_group: ProcessGroup | None = None,
        **arguments: Any,
    ) -> None:
        self._process_group = process_group
        super().__init__(path, keys, callbacks, **arguments)

    def _exchange_of(self, processes: Exchange | Literal[1] | None, time_limit: float) -> Exchange | None:
        if self._process_group is None:
            return super()._exchange_of(processes, time_limit)
        if processes is not None:
            raise NoetherError(f"Run got process_group and processes={processes!r}; give one of them")
        return group_exchange(self._process_group, time_limit=time_limit)

    def step(self, update_outputs: Any = None, **arguments: Any) -> None:
        """Count and track one accumulation step; see `noether_core.run.Run.step`. A compiled function breaks there."""
        if _is_compiling():
            return _call_outside_of_torch_compile(_step, self, update_outputs, **arguments)  # type: ignore[no-any-return]
        return _step(self, update_outputs, **arguments)  # at every step: cheaper than super()

    def log(self, values: Mapping[str, Any]) -> None:
        """Log values of your own; see `noether_core.run.Run.log`. A compiled function breaks there."""
        if _is_compiling():
            _call_outside_of_torch_compile(self._log, values)
        else:
            self._log(values)

    def _log(self, values: Mapping[str, Any]) -> None:
        super().log({key: loggable(key, value) for key, value in flatten(values).items()})

    def probe(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        names: Names | None = None,
        activations: bool = True,
        name: str = "",
    ) -> None:
        """Probe what each step of a model and its optimizer computes, at the updates that the `ProbeCallback` names.

        Call it once for each model, before or after the run starts; the hooks are there only while an update is probed, and
        gone when the run ends. What is read, and when: `noether_torch.watching`.

        Args:
            model: the module.
            optimizer: the one that has its parameters, or several.
            names: gives other names and layouts to what has the parameters' names.
            activations: whether what modules return is read.
            name: of several models, what this one is called: `generator` has `param/generator.fc.weight`.

        Raises:
            HookOrderError: if the run has no `ProbeCallback`.
            NoetherError: for what is no model, for an optimizer of another model, or for a second model of the same names.
        """
        optimizers = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
        for callback in probe_callbacks(self.callbacks):
            watched = Watched(model, optimizers, names, activations=activations, name=name)
            for other in callback.sources:
                if isinstance(other, Watched):
                    watched.check_beside(other)
            callback.sources.append(watched)
            callback.prepare(self.counter)
