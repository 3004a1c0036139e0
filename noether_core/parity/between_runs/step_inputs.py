"""Take what a step started from, and what it computed, out of recordings; measure whether a replayed step gives the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from noether_core.parity.divergence import Divergence, MemoryTraining, Noise, Training, compare, stage_of

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Culprit = Literal["batch", "params", "optimizer state", "forward", "clip", "optimizer"]

PIECES: Mapping[Culprit, str] = {"batch": "data", "params": "param", "optimizer state": "opt"}
"""What a step starts from, and the stage that has it."""


@dataclass(frozen=True)
class Inputs:
    """Hold what a step starts from, by name: batch, parameters, the optimizer's state and the modules' buffers."""

    batch: Arrays
    params: Arrays
    state: Arrays
    buffers: Arrays

    @classmethod
    def of(cls, training: Training, update: int) -> Inputs:
        """Return what an update of a training started from."""
        before = recorded(training, update - 1, ("opt",))
        names = {key: key.partition("/")[2] for key in before}
        return cls(
            named(training, update, "data"),
            named(training, update, "param"),
            {names[key]: array for key, array in before.items() if not is_buffer(key)},
            {names[key]: array for key, array in before.items() if is_buffer(key)},
        )

    def but(self, other: Inputs, *pieces: Culprit) -> Inputs:
        """Return these inputs with some pieces of the other's."""
        return Inputs(
            _as_own(self.batch, other.batch) if "batch" in pieces else self.batch,
            _exchanged(self.params, other.params) if "params" in pieces else self.params,
            _exchanged(self.state, other.state) if "optimizer state" in pieces else self.state,
            _exchanged(self.buffers, other.buffers) if "optimizer state" in pieces else self.buffers,
        )

    def given(self, gradients: Arrays | None = None) -> dict[str, Array]:
        """Return what a step was given, by key: parameters and gradients say how far rounding moves what follows from them."""
        params = {f"param/{name}": array for name, array in self.params.items()}
        return params | {f"grad/{name}": array for name, array in (gradients or {}).items()}


def gap(
    held: Mapping[int, Arrays],
    computed: Mapping[int, Mapping[str, Any]],
    given: Mapping[int, Arrays],
    noise: Noise | None,
) -> Divergence | None:
    """Return where steps did not compute what was recorded, all by update and beside what they were given; None if nowhere."""
    replayed = {
        update: {key: computed[update][key] for key in held[update] if key in computed[update]} for update in held
    }
    one = MemoryTraining("recorded", "", {update: {**given[update], **held[update]} for update in held})
    other = MemoryTraining("replayed", "", {update: {**given[update], **replayed[update]} for update in held})
    return compare(one, other, noise).first


def recorded(training: Training, update: int, stages: Sequence[str]) -> dict[str, Array]:
    """Return the arrays of some stages that an update has, by key."""
    found = {key: training.array(update, key) for key in training.keys(update) if stage_of(key) in stages}
    return {key: array for key, array in found.items() if array is not None}


def named(training: Training, update: int, stage: str) -> dict[str, Array]:
    """Return the arrays of a stage that an update has, by name."""
    return {key.partition("/")[2]: array for key, array in recorded(training, update, (stage,)).items()}


def is_buffer(key: str) -> bool:
    """Tell whether a key is a module's buffer, not an optimizer's moment or count.

    >>> [is_buffer(key) for key in ("opt/norm.running_mean", "opt/mu/fc.weight", "opt/count", "grad/fc.weight")]
    [True, False, False, False]
    """
    stage, _, name = key.partition("/")
    return stage == "opt" and "/" not in name and name != "count"


def gradients_for(own: Training, other: Training, update: int, stage: str) -> dict[str, Array]:
    """Return the other's gradients for the parameters that one has; zeros for those that the other lacks.

    What the other has no gradient of must not count in a norm of all gradients.
    """
    theirs, has = named(other, update, stage), named(own, update, "grad")
    return {name: theirs.get(name, np.zeros_like(value)) for name, value in has.items()} if theirs and has else theirs


def _exchanged(own: Arrays, other: Arrays) -> Arrays:
    """Return arrays by name with the other's values where both have one."""
    return {name: other.get(name, value) for name, value in own.items()}


def _as_own(own: Arrays, other: Arrays) -> Arrays:
    """Return the other's batch, its whole numbers in the dtype that one's own have: PyTorch's losses refuse JAX's int32."""
    return {
        name: array.astype(own[name].dtype)
        if name in own and array.dtype.kind in "iu" and own[name].dtype.kind in "iu"
        else array
        for name, array in other.items()
    }
