"""Know the learning rates that optimizers' steps used, whatever a scheduler has set since."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from noether_core.callbacks.learning_rate import read_rates
from noether_core.config.loop import LearningRateCallbackConfig


def rates_of(optimizer: Any) -> dict[str, Any]:
    """Return an optimizer's learning rates as they are now, by the names of its parameter groups."""
    rates = read_rates(optimizer, 0)
    return {name: rate.detach().clone() if isinstance(rate, Tensor) else rate for name, rate in rates.items()}


def with_source(configs: Sequence[Any], source: Any) -> list[Any]:
    """Return these configs; learning rates that name neither key nor source have this source."""
    return [
        config.model_copy(update={"source": source})
        if isinstance(config, LearningRateCallbackConfig) and config.key is None and config.source is None
        else config
        for config in configs
    ]


class UsedRates:
    """Be the source of the learning rates that an optimizer's last step used."""

    def __init__(self) -> None:
        self._rates: dict[str, Any] = {}
        self._handle: RemovableHandle | None = None

    def __call__(self, update: int) -> dict[str, Any]:
        """Return the rates by name; none before the first step."""
        return self._rates

    def watch(self, optimizer: Any) -> None:
        """Note the rates at each step of this optimizer from now on, by a hook that PyTorch neither copies nor pickles."""
        self.release()
        inner = getattr(optimizer, "optimizer", optimizer)  # Accelerate wraps it
        if isinstance(inner, Optimizer):
            self._handle = inner.register_step_pre_hook(self._note)

    def before_step(self, optimizer: Any) -> None:
        """Note the rates of an optimizer that has no hooks; its step comes next."""
        if self._handle is None and optimizer is not None:
            self._note(optimizer)

    def _note(self, optimizer: Any, *_: Any) -> None:
        self._rates = rates_of(optimizer)

    def release(self) -> None:
        """Take the hook off."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None
