"""Probe a training step of PyTorch: what it computed, by stage, under names that frameworks share.

with Run("runs/mine", callbacks=[{"kind": "ProbeCallback"}]) as run:
    run.probe(model, optimizer)
    for images, labels in batches:
        ...                                # the loop as it was
        run.step({"loss": loss}, batch={"images": images, "labels": labels}, losses=loss)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, Unpack

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from noether_core import probes
from noether_core.errors import NoetherError
from noether_core.probes import walk
from noether_core.probes.fingerprint import holds_numbers
from noether_core.probes.naming import Names
from noether_core.probes.probed import KEY, Due
from noether_core.probes.sampling import DEFAULT_LIMIT
from noether_core.probes.stages import Pieces
from noether_core.probes.walk import Reader
from noether_core.records import items_of
from noether_torch.backend import BACKEND
from noether_torch.measuring import measured

EVERYTHING = Due(statistics=True, array_limit=DEFAULT_LIMIT)
KEPT = {  # what an optimizer keeps of a parameter, by optax's names
    "exp_avg": "mu",
    "grad_avg": "mu",
    "exp_avg_sq": "nu",
    "square_avg": "nu",
    "exp_inf": "nu",
    "max_exp_avg_sq": "nu_max",
    "momentum_buffer": "trace",
    "sum": "sum_of_squares",
    "acc_delta": "e_x",
}
_WRAPPERS = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""The names that wrappers, such as DistributedDataParallel and torch.compile, give to what they wrap."""

T = TypeVar("T")


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
    return walk.stage_values(READER, pieces, names or dict)


def _flat(stage: str, piece: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers of dicts, records and sequences by dotted name, and of a module what it has for a stage."""
    if isinstance(piece, Iterator):
        raise NoetherError(
            f"probe got a {type(piece).__name__} in {stage}, which can be read once; give the module, a dict or a list"
        )
    if isinstance(piece, nn.Module):
        yield from _of_module(stage, piece).items()
    elif isinstance(piece, Mapping) and stage not in ("data", "act", "loss"):
        yield from _tree(unwrapped({str(name): value for name, value in piece.items()}), "")
    else:
        yield from _tree(piece, "")


def _tree(piece: Any, name: str) -> Iterator[tuple[str, Any]]:
    items = None if isinstance(piece, Tensor) else items_of(piece)
    if items is None and isinstance(piece, tuple | list):
        items = enumerate(piece)
    if items is not None:
        for key, value in items:
            yield from _tree(value, f"{name}.{key}" if name else str(key))
    elif isinstance(piece, Tensor) or type(piece) in (bool, int, float, complex) or _is_array(piece):
        yield name, piece


def _is_array(piece: Any) -> bool:
    return hasattr(piece, "dtype") and holds_numbers(piece.dtype)


def _of_module(stage: str, module: nn.Module) -> dict[str, Any]:
    if stage == "opt":
        return buffers_of(module)
    of_grads = stage in ("grad", "clip")
    found = {name: value.grad if of_grads else value for name, value in parameters_of(module).items()}
    return {name: value for name, value in found.items() if value is not None}


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return a module's parameters by name, those that it shares once."""
    return unwrapped(dict(module.named_parameters()))


def buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's buffers that hold floats, by name."""
    return unwrapped({name: value for name, value in module.named_buffers() if value.is_floating_point()})


def unwrapped(named: Mapping[str, T], others: Iterable[str] = ()) -> dict[str, T]:
    """Return what names have without the parts of names that wrappers give; of a wrapper and what it wraps, the wrapper.

    A wrapper has nothing but what it wraps, so a module that is called so beside others keeps its name.

    Args:
        named: what has names.
        others: more names of the same model.

    >>> unwrapped({"_orig_mod.module.layers.0.weight": 1, "_orig_mod.module.layers.0.bias": 2})
    {'layers.0.weight': 1, 'layers.0.bias': 2}
    >>> unwrapped({"module.weight": 1, "weight": 2}), unwrapped({"0": 1, "0.module": 2})
    ({'module.weight': 1, 'weight': 2}, {'0': 1})
    """
    inside: dict[str, set[str]] = {}
    for name in (*named, *others):
        for outer, part in _parts(name):
            inside.setdefault(outer, set()).add(part)
    found: dict[str, T] = {}
    for name, value in named.items():
        parts = [part for outer, part in _parts(name) if part not in _WRAPPERS or len(inside[outer]) > 1]
        found.setdefault(".".join(parts), value)
    return found


def _parts(name: str) -> Iterator[tuple[str, str]]:
    """Yield the parts of a name, each after what is before it."""
    at = -1
    while name:
        end = name.find(".", at + 1)
        yield name[: max(0, at)], name[at + 1 : end if end >= 0 else None]
        if end < 0:
            return
        at = end


def _kept(state: Any, pieces: Pieces) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not isinstance(state, Optimizer):
        for field, value in state.items():
            if isinstance(value, Mapping):
                yield str(field), walk.flat(READER, "opt", value)
            else:
                yield "", dict(_tree(value, str(field)))
        return
    params = walk.flat(READER, "param", pieces.get("params"))
    held = [each for group in state.param_groups for each in group["params"]]
    if not {id(each) for each in held} & {id(each) for each in params.values()}:  # copies, as of before the step
        shapes = [[getattr(each, "shape", None) for each in side] for side in (held, params.values())]
        if shapes[0] != shapes[1]:
            raise NoetherError(
                f"probe got a {type(state).__name__} as opt_state, which keeps its state by parameter, and params that are"
                " none of its; give the module as params, or its named parameters"
            )
        params = dict(zip(params, held, strict=True))
    yield from optimizer_fields(state, params).items()


READER = Reader(_flat, _kept, "the `torch.optim.Optimizer`, or what it keeps as {'mu': {name: tensor}}")


def optimizer_fields(optimizer: Optimizer, params: Mapping[str, Tensor]) -> dict[str, dict[str, Any]]:
    """Return what an optimizer keeps of parameters: by field and name, in the parameters' order; `count` is one, the largest.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> model(torch.ones(1, 2)).sum().backward(); optimizer.step()
    >>> {field: list(kept) for field, kept in optimizer_fields(optimizer, dict(model.named_parameters())).items()}
    {'count': ['count'], 'mu': ['weight', 'bias'], 'nu': ['weight', 'bias']}
    """
    found: dict[str, dict[str, Any]] = {}
    steps = [
        torch.as_tensor(state["step"]) for each in params.values() if "step" in (state := optimizer.state.get(each, {}))
    ]
    if steps:  # what never had a gradient may count none
        found["count"] = {"count": torch.stack([step.to(steps[0].device) for step in steps]).max().to(torch.int64)}
    for name, parameter in params.items():
        for field, value in optimizer.state.get(parameter, {}).items():
            if field != "step" and isinstance(value, Tensor) and value.shape == parameter.shape:
                found.setdefault(KEPT.get(field, field), {})[name] = value
    return found


class ProbeCallback(probes.ProbeCallback):
    """Take what was probed of a PyTorch step, and save it: its statistics, and its arrays if it has any."""

    backend = BACKEND
    framework = "torch"

    reader = READER
    measured = staticmethod(measured)
