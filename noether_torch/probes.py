"""Probe a training step of PyTorch: what it computed, by stage, under names that frameworks share.

with Run("runs/mine", callbacks=[{"kind": "ProbeCallback"}]) as run:
    run.probe(model, optimizer)
    for images, labels in batches:
        ...                                # the loop as it was
        run.step({"loss": loss}, batch={"images": images, "labels": labels}, losses=loss)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noether_core import probes
from noether_core.probes.naming import Names
from noether_core.probes.probed import KEY, Due, Probed
from noether_core.probes.sampling import DEFAULT_LIMIT
from noether_core.probes.stages import Pieces, check_pieces, with_stage
from noether_torch.backend import BACKEND
from noether_torch.measuring import measured

EVERYTHING = Due(statistics=True, array_limit=DEFAULT_LIMIT)
_KEPT = {  # what an optimizer keeps of a parameter, by optax's names
    "exp_avg": "mu",
    "grad_avg": "mu",
    "exp_avg_sq": "nu",
    "square_avg": "nu",
    "exp_inf": "nu",
    "max_exp_avg_sq": "nu_max",
    "momentum_buffer": "trace",
    "sum": "sum_of_squares",
}
_WRAPPERS = frozenset({"module", "_orig_mod"})  # the names that DataParallel and torch.compile give to what they wrap


def probe(due: Due = EVERYTHING, *, names: Names | None = None, **pieces: Unpack[Pieces]) -> dict[str, Any]:
    """Return what is to be known of a step's pieces, as update outputs for `run.step`: `{"probes": ...}`, or nothing.

    For loops that have the pieces at hand; of others `run.probe(model, optimizer)` takes them. What is kept is copied.

    Args:
        due: what is probed, as `run.probes_due` says. If it is false, nothing is computed.
        names: gives other names and layouts to what has the parameters' names.
        **pieces: see `Pieces`: dicts and sequences of tensors. `params`, `grads`, `clipped` and `buffers` may be a module that
            has them; `opt_state` the optimizer, with a module as `params`, or what it keeps by `mu/NAME` and the like.

    Raises:
        NoetherError: for a dtype that is no number's.

    >>> model = nn.Linear(2, 3)
    >>> probe(Due(statistics=True), params=model, losses=0.5)
    {'probes': Probed(3 keys, 0 arrays)}
    """
    return {KEY: measured(stage_values(names=names, **pieces), due)} if due else {}


def stage_values(*, names: Names | None = None, **pieces: Unpack[Pieces]) -> dict[str, Any]:
    """Return a step's tensors whole, by `stage/name`, uncopied; see `probe`, whose arguments these are.

    >>> list(stage_values(params=nn.Linear(2, 3), batch=(torch.ones(2),)))
    ['data/0', 'param/weight', 'param/bias']
    """
    check_pieces(pieces)
    rename: Callable[[Mapping[str, Any]], Mapping[str, Any]] = names or (lambda given: given)
    found: dict[str, Any] = {}
    for stage, piece in (("data", "batch"), ("act", "activations"), ("loss", "losses")):
        found |= named(stage, pieces.get(piece))
    for stage, piece in (("param", "params"), ("grad", "grads"), ("clip", "clipped"), ("update", "updates")):
        found |= with_stage(stage, rename(parameters_of(pieces.get(piece), of_grads=stage in ("grad", "clip"))))
    found |= with_stage("opt", rename(buffers_of(pieces.get("buffers"))))
    opt_state = pieces.get("opt_state")
    if isinstance(opt_state, Optimizer):
        for field, kept in optimizer_fields(opt_state, parameters_of(pieces.get("params"))).items():
            found |= with_stage("opt", kept if field == "count" else _within(field, rename(kept)))
    elif opt_state is not None:
        found |= with_stage("opt", dict(opt_state))
    return found


def _within(field: str, kept: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{field}/{name}": value for name, value in kept.items()}


def named(stage: str, piece: Any) -> dict[str, Any]:
    """Return the tensors of dicts and sequences by `stage/name`; a lone one is the stage's `total`."""
    found = {name.removeprefix("activations.") if stage == "act" else name: value for name, value in _flat(piece, "")}
    return with_stage(stage, found)


def _flat(piece: Any, name: str) -> Iterator[tuple[str, Any]]:
    prefix = f"{name}." if name else ""
    if isinstance(piece, Mapping):
        for key, value in piece.items():
            yield from _flat(value, prefix + str(key).replace("/", "."))
    elif isinstance(piece, tuple | list):
        fields = getattr(piece, "_fields", range(len(piece)))
        for key, value in zip(fields, piece, strict=True):
            yield from _flat(value, f"{prefix}{key}")
    elif isinstance(piece, Tensor) or hasattr(piece, "dtype") or type(piece) in (bool, int, float):
        yield name, piece


def parameters_of(piece: Any, *, of_grads: bool = False) -> dict[str, Any]:
    """Return tensors by the parameters' names, or of a module its parameters or their gradients."""
    if not isinstance(piece, nn.Module):
        return {} if piece is None else {unwrapped(name): value for name, value in piece.items()}
    found = ((unwrapped(name), value.grad if of_grads else value) for name, value in piece.named_parameters())
    return {name: value for name, value in found if value is not None}


def buffers_of(piece: Any) -> dict[str, Any]:
    """Return tensors by the buffers' names, or those of a module's buffers that hold floats."""
    if not isinstance(piece, nn.Module):
        return {} if piece is None else {unwrapped(name): value for name, value in piece.items()}
    return {unwrapped(name): value for name, value in piece.named_buffers() if value.is_floating_point()}


def unwrapped(name: str) -> str:
    """Return a name without the parts that wrappers give.

    >>> unwrapped("_orig_mod.module.layers.0.weight")
    'layers.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def optimizer_fields(optimizer: Optimizer, params: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return what an optimizer keeps of parameters: by field and name, in the parameters' order; `count` is a lone number.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> model(torch.ones(1, 2)).sum().backward(); optimizer.step()
    >>> {field: list(kept) for field, kept in optimizer_fields(optimizer, dict(model.named_parameters())).items()}
    {'count': ['count'], 'mu': ['weight', 'bias'], 'nu': ['weight', 'bias']}
    """
    found: dict[str, dict[str, Any]] = {}
    for name, parameter in params.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            if field == "step":
                found.setdefault("count", {"count": torch.as_tensor(value).to(torch.int64)})
            elif isinstance(value, Tensor) and value.shape == parameter.shape:
                found.setdefault(_KEPT.get(field, field), {})[name] = value
    return found


class ProbeCallback(probes.ProbeCallback):
    """Take what was probed of a PyTorch step, and save it: its statistics, and its arrays if it has any."""

    backend = BACKEND
    framework = "torch"

    def measured(self, values: Mapping[str, Any], due: Due) -> Probed:
        """Return what is probed of values by key."""
        return measured(values, due)

    def named(self, stage: str, given: Any) -> dict[str, Any]:
        """Return the tensors of dicts and sequences by key."""
        return named(stage, given)
