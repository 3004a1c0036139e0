"""Hand back modules' activations as update outputs.

with capture_activations(model, ["encoder"]) as activations:
    for batch in batches:
        loss = train_step(model, batch)
        run.step({"loss": loss, **activations.take()})
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

from torch import Tensor, nn

from noether_core.errors import NoetherError, listing, suggest
from noether_core.select import select

Statistic = Callable[[Tensor], Tensor]


class CapturedActivations:
    """Hold the newest activations of the modules `names`, until they are taken. `capture_activations` makes it."""

    def __init__(self, modules: Mapping[str, nn.Module], statistics: Mapping[str, Statistic] | None) -> None:
        self.names = tuple(modules)
        # a copy, for a later layer may work in place
        self._statistics = (
            {"": Tensor.clone} if statistics is None else {f"/{name}": of for name, of in statistics.items()}
        )
        self._held: dict[str, Tensor] = {}
        self._handles = [
            module.register_forward_hook(partial(self._hold, f"activations/{name}" if name else "activations"))
            for name, module in modules.items()
        ]

    def _hold(self, key: str, module: nn.Module, inputs: Any, output: Any) -> None:
        for path, tensor in _tensors(key, output):
            value = tensor.detach()
            self._held |= {path + name: statistic(value) for name, statistic in self._statistics.items()}

    def take(self) -> dict[str, Tensor]:
        """Return the activations since the last call, and let go of them.

        Where a module ran several times, these are its last run's. An evaluation runs modules too: the next step's runs
        replace what it left.

        Returns:
            `activations/<module name>`, or `activations/<module name>/<statistic>`, to detached tensors, in the order the
            modules first ran. The outputs of a module that returns several have their index or key at the end of the name.
        """
        taken, self._held = self._held, {}
        return taken

    def remove(self) -> None:
        """Take the hooks off the modules and let go of what is held. Leaving the `with` block does this."""
        self._held = {}
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def capture_activations(
    model: nn.Module, patterns: Sequence[str], statistics: Mapping[str, Statistic] | None = None
) -> CapturedActivations:
    """Capture what the modules whose name contains one of `patterns` return, at each forward pass from now on.

    Under `torch.compile`, call this before the model's first forward pass, or after `torch.compiler.reset()`: what is compiled
    then has the hooks in it, and what was compiled before has none.

    Args:
        model: the model, compiled or not.
        patterns: literal parts of module names, as `model.named_modules()` gives them.
        statistics: functions from an activation to a tensor, by the names to track them under; computed at once, so that the
            activations are not kept. None: the activations themselves, copied.

    Raises:
        NoetherError: if a pattern matches no module.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with capture_activations(model, ["1"], {"zeros": lambda x: (x == 0).sum()}) as activations:
    ...     output = model(torch.zeros(1, 2))
    ...     list(activations.take())
    ['activations/1/zeros']
    """
    if isinstance(patterns, str):
        raise NoetherError(f"capture_activations got the string {patterns!r}; write a list: [{patterns!r}]")
    modules = {  # without the name that torch.compile gives to what it wraps
        ".".join(part for part in name.split(".") if part != "_orig_mod"): module
        for name, module in model.named_modules()
    }
    selection = select((), patterns, tuple(modules))
    for pattern, names in selection.matches.items():
        if not names:
            raise NoetherError(
                f"pattern {pattern!r} is in no module's name; {type(model).__name__} has"
                f" {listing(name for name in modules if name)}.{suggest(pattern, modules)}"
            )
    return CapturedActivations({name: modules[name] for name in selection.tracked}, statistics)


def _tensors(key: str, output: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(output, Tensor):
        yield key, output
    elif isinstance(output, Mapping | list | tuple):
        for name, value in output.items() if isinstance(output, Mapping) else enumerate(output):
            yield from _tensors(f"{key}/{name}", value)
