"""Say what a step of a training is: what it is given, taken out of a recording, and what is recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from noether_core.parity.divergence import Divergence, MemoryTraining, Noise, Training, compare, stage_of

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Culprit = Literal["batch", "params", "optimizer state", "forward", "clip", "optimizer"]

PIECES: Mapping[Culprit, str] = {"batch": "data", "params": "param", "optimizer state": "opt"}
"""What a step starts from, and the stage that has it."""


class Step(Protocol):
    """Compute one step of a training from its inputs alone, and return all that it computes under canonical keys.

    Args:
        batch: what is recorded under `data/`, by name.
        params: the parameters that the step starts from, by name, in PyTorch's layout.
        opt_state: what is recorded under `opt/` of the update before, such as `mu/NAME` and `count`; empty at the first
            update, when the step is to make a fresh one.
        buffers: what is recorded under `opt/` of the update before and is no optimizer's, such as `norm.running_mean`; empty at
            the first update.
        update: which one, counted from 1.
        grads: gradients to take in place of those of a forward and backward pass: they are clipped and applied; None: compute
            them.

    Returns:
        `act/…`, `loss/…`, `grad/…`, `clip/…`, `update/…` and `opt/…`, as `probe` records them.
    """

    def __call__(
        self,
        batch: Arrays,
        params: Arrays,
        opt_state: Arrays,
        buffers: Arrays,
        update: int,
        grads: Arrays | None = None,
    ) -> Mapping[str, Any]:
        """Return what the step computes."""


class Inputs(NamedTuple):
    """Hold what a step is given, one field an argument of `Step`."""

    batch: Arrays
    params: Arrays
    opt_state: Arrays
    buffers: Arrays
    update: int
    grads: Arrays | None = None

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
            update,
        )

    def but(self, other: Inputs, *pieces: Culprit) -> Inputs:
        """Return these inputs with some pieces of the other's."""
        found = self
        if "batch" in pieces:
            found = found._replace(batch=_as_own(self.batch, other.batch))
        if "params" in pieces:
            found = found._replace(params=_exchanged(self.params, other.params))
        if "optimizer state" in pieces:
            state, buffers = _exchanged(self.opt_state, other.opt_state), _exchanged(self.buffers, other.buffers)
            found = found._replace(opt_state=state, buffers=buffers)
        return found

    def by_key(self) -> dict[str, Array]:
        """Return parameters and gradients by key: these say how far rounding moves what follows from them."""
        params = {f"param/{name}": array for name, array in self.params.items()}
        return params | {f"grad/{name}": array for name, array in (self.grads or {}).items()}

    def to(self, step: Step) -> Mapping[str, Any]:
        """Return what a step computes of copies of these, for it may write into them."""
        batch, params, opt_state, buffers = map(_copied, (self.batch, self.params, self.opt_state, self.buffers))
        grads = None if self.grads is None else _copied(self.grads)
        return step(batch, params, opt_state, buffers, self.update, grads=grads)


def as_step(compute: Callable[[Inputs], Mapping[str, Any]]) -> Step:
    """Return a step that hands on what it is given, in one.

    >>> step = as_step(lambda given: {"loss/total": given.batch["x"].sum()})
    >>> int(step({"x": np.ones(3)}, {}, {}, {}, update=1)["loss/total"])
    3
    """

    def step(*arguments: Any, **named: Any) -> Mapping[str, Any]:
        return compute(Inputs(*arguments, **named))

    return step


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


def _copied(arrays: Arrays) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}
