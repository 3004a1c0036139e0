"""Name what a step computes: `stage/name`, the stages in the order in which a step computes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from noether_core.errors import NoetherError, listing, suggest

STAGES = ("data", "param", "act", "loss", "grad", "clip", "update", "opt")
"""The stages of an update, in the order in which a step computes them. A key is `stage/name`."""


class Pieces(TypedDict, total=False):
    """Name what a step has; each is a tree of arrays. Leave out what it has not.

    Attributes:
        batch: what the step read.
        params: as they were before the step.
        activations: what modules returned, by name.
        losses: a number, or several by name.
        grads: before they are clipped.
        clipped: after; left out: they are not clipped.
        updates: new parameters less old ones.
        opt_state: what the optimizer keeps, after the step.
        buffers: running statistics, after the step.
    """

    batch: Any
    params: Any
    activations: Any
    losses: Any
    grads: Any
    clipped: Any
    updates: Any
    opt_state: Any
    buffers: Any


def check_pieces(pieces: Iterable[str]) -> None:
    """Raise `NoetherError` for a name that is none of `Pieces`."""
    known = Pieces.__annotations__
    for name in pieces:
        if name not in known:
            raise NoetherError(
                f"probe got the unknown piece {name!r}; it takes {listing(known)}.{suggest(name, known)}"
            )


def in_order(keys: Iterable[str]) -> list[str]:
    """Return keys stage by stage, each in the order given; those of no stage are left out.

    >>> in_order(["loss/total", "grad/b", "grad/a", "data/x"])
    ['data/x', 'loss/total', 'grad/b', 'grad/a']
    """
    by_stage: dict[str, list[str]] = {stage: [] for stage in STAGES}
    for key in keys:
        stage, slash, name = key.partition("/")
        if slash and name and stage in by_stage:
            by_stage[stage].append(key)
    return [key for of_stage in by_stage.values() for key in of_stage]


def accumulation_step_of(key: str) -> int:
    """Return of which accumulation step of its update a key is, counted from 0: what stands after its `@`.

    >>> accumulation_step_of("data/x"), accumulation_step_of("data/x@2")
    (0, 2)
    """
    step = key.rpartition("@")[2] if "@" in key else ""
    return int(step) if step.isdecimal() and step.isascii() else 0


def with_stage(stage: str, named: Mapping[str, Any]) -> dict[str, Any]:
    """Return values under the keys of a stage; a lone value without a name is its `total`.

    Raises:
        NoetherError: if another has that name.

    >>> with_stage("loss", {"": 0.5})
    {'loss/total': 0.5}
    """
    if "" in named and "total" in named:
        raise NoetherError(f"probe got two arrays 'total' in {stage}: one has no name; rename the other")
    return {f"{stage}/{name or 'total'}": value for name, value in named.items()}
