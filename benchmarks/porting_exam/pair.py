"""Hold a pair: one training written in PyTorch and in JAX, by options that a bug changes on one side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Arrays = dict[str, Any]
Options = Mapping[str, Any]
UPDATES = 12


@dataclass(frozen=True, eq=False)
class Pair:
    """Hold what both sides of a pair share, and each one's own code.

    Attributes:
        options: those of the correct pair.
        weights: makes the first weights by a seed, under PyTorch's names.
        batches: makes the batches of all updates by a seed, as arrays by name.
        torch_model, torch_losses, torch_optimizer: the PyTorch side. Losses are a number, or several with a `total`.
        jax_model: returns parameters, the `Matching` of their names (None: they are PyTorch's) and a function from parameters,
            batch and options to losses and activations.
        jax_optimizer: an optax transformation.
        rate: PyTorch's learning rate of an update, counted from 1; JAX's optimizer has its own.
        state: names that PyTorch's optimizer has for what is recorded as `opt/NAME`, where they are not Adam's.
        matched: whether JAX's probes take their names from the matching, not from the default.
        complete: adds to PyTorch's state of a parameter what probes do not keep.
    """

    name: str
    options: Options
    weights: Callable[[int], Arrays]
    batches: Callable[[int, Options], list[Arrays]]
    torch_model: Callable[[Options], Any]
    torch_losses: Callable[[Any, Arrays, Options], Any]
    torch_optimizer: Callable[[Any, Options], Any]
    jax_model: Callable[[Options], tuple[Any, Any, Callable[[Any, Arrays, Options], tuple[Any, Any]]]]
    jax_optimizer: Callable[[Options], Any]
    rate: Callable[[Options, int], float] | None = None
    state: Mapping[str, str] = field(default_factory=dict)
    matched: bool = False
    complete: Callable[[Arrays, Options], None] | None = None


def losses_by_name(found: Any) -> dict[str, Any]:
    """Return losses by name; a lone one is the total."""
    return found if isinstance(found, dict) else {"total": found}


def under(arrays: Mapping[str, Any], field: str) -> Arrays:
    """Return the arrays of `FIELD/NAME` by name."""
    return {key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{field}/")}
