"""Find the part of a step that makes two trainings differ: give one's inputs to the other's step; see what closes the gap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from noether_core.parity.divergence import Comparison, Divergence, MemoryTraining, Noise, Training, compare, stage_of

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Culprit = Literal["batch", "params", "optimizer state", "forward", "clip", "optimizer"]

_OF_FORWARD = ("act", "loss", "grad", "clip", "update", "opt")
_OF_OPTIMIZER = ("clip", "update", "opt")
_INPUTS: Mapping[Culprit, str] = {"batch": "data", "params": "param", "optimizer state": "opt"}
_WORDS: Mapping[Culprit, str] = {
    "batch": "the batch: the step itself is the same",
    "params": "the parameters that the step starts from: the step itself is the same",
    "optimizer state": "the state that is carried from step to step: the step itself is the same",
    "forward": "the forward or backward pass, from the batch and the parameters to gradients and buffers",
    "clip": "how gradients are clipped",
    "optimizer": "the optimizer, from (clipped) gradients to updates and its state",
}


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


@dataclass(frozen=True)
class Swap:
    """Hold what came of giving B's step something of A's.

    Attributes:
        given: what of A's it was given, in words.
        closes: whether B's step then gave what A recorded.
        first: where it still differs, the first place; None if it closes the gap.
    """

    given: str
    closes: bool
    first: Divergence | None = None


@dataclass(frozen=True)
class Transplant:
    """Say which part of the step makes two trainings differ.

    Attributes:
        culprit: the part; None if it cannot be said.
        sentence: the answer.
        update: the step that was replayed; 0 if none was.
        swaps: what was tried, in that order.
    """

    culprit: Culprit | None
    sentence: str
    update: int = 0
    swaps: tuple[Swap, ...] = ()


@dataclass(frozen=True)
class _Inputs:
    batch: Arrays
    params: Arrays
    state: Arrays
    buffers: Arrays

    def but(self, other: _Inputs, piece: Culprit) -> _Inputs:
        """Return these inputs with one piece of the other's."""
        return _Inputs(
            other.batch if piece == "batch" else self.batch,
            other.params if piece == "params" else self.params,
            _exchanged(self.state, other.state) if piece == "optimizer state" else self.state,
            _exchanged(self.buffers, other.buffers) if piece == "optimizer state" else self.buffers,
        )


def transplant(
    step_a: Step, step_b: Step, a: Training, b: Training, comparison: Comparison, noise: Noise | None = None
) -> Transplant:
    """Replay the first differing step with parts of one training in the other's step, and name the part that closes the gap.

    A's batch, parameters or state go into B's step, one at a time: what closes the gap there is at fault, and not the step. If
    none does, all of them go in, then A's gradients too, then A's clipped gradients.

    Args:
        step_a: a function of the first training's own code; see `Step`.
        step_b: one of the second's.
        a: what the first computed, with arrays of the first differing update and the one before.
        b: what the second computed.
        comparison: of `a` and `b`.
        noise: of their twins; None: floors stand in.

    Example::

        found = compare_trainings("runs/torch", "runs/jax")
        print(transplant(step_of_torch, step_of_jax, read_training("runs/torch"), read_training("runs/jax"), found).sentence)
    """
    if comparison.first is None:
        return Transplant(None, f"There is nothing to transplant: {comparison.sentence}")
    replay = _Replay((step_a, step_b), a, b, comparison.first.update, noise)
    labels = comparison.labels
    if (problem := replay.problem()) or (problem := _unlike(step_a, a, replay.update, noise, labels[0])):
        return Transplant(None, f"Cannot say: {problem}", replay.update)
    swaps: list[Swap] = []
    for culprit, swap in replay.swaps():
        swaps.append(swap)
        if culprit is not None:
            return Transplant(culprit, _sentence(culprit, replay.update, labels, swap), replay.update, tuple(swaps))
    return Transplant(None, f"Cannot say: no part of {labels[0]} closes the gap.", replay.update, tuple(swaps))


class _Replay:
    """Replay one update of B with pieces of A."""

    def __init__(self, steps: tuple[Step, Step], a: Training, b: Training, update: int, noise: Noise | None) -> None:
        self.step_a, self.step_b = steps
        self.a, self.b, self.update, self.noise = a, b, update, noise
        self.of_a, self.of_b = _inputs(a, update), _inputs(b, update)
        self._recorded = _recorded(a, update, _OF_FORWARD)

    def problem(self) -> str:
        """Return why this update cannot be replayed, or an empty string."""
        for training, inputs in ((self.a, self.of_a), (self.b, self.of_b)):
            lacking = [stage for stage, held in (("data", inputs.batch), ("param", inputs.params)) if not held]
            if lacking:
                return (
                    f"{training.label} has no arrays of {' and '.join(lacking)} at update {self.update}: let `probe` keep"
                    " arrays of that update, whole"
                )
        return ""

    def swaps(self) -> Iterator[tuple[Culprit | None, Swap]]:
        """Yield what was tried, and at the end whose fault it is."""
        own = self._swap("nothing", self.of_b, against=_recorded(self.b, self.update, _OF_FORWARD))
        if not own.closes:
            yield "optimizer state", own
            return
        for piece in _INPUTS:
            if self._is_apart(piece):
                alone = self._swap(f"the {piece} alone", self.of_b.but(self.of_a, piece))
                yield (piece if alone.closes else None), alone
        everything = self.of_b
        for piece in _INPUTS:
            everything = everything.but(self.of_a, piece)
        whole = self._swap("batch, parameters and state", everything)
        if whole.closes:
            yield next((piece for piece in _INPUTS if self._is_apart(piece)), "optimizer state"), whole
            return
        yield None, whole
        yield from self._by_gradients(everything)

    def _by_gradients(self, inputs: _Inputs) -> Iterator[tuple[Culprit | None, Swap]]:
        gradients, clipped = (_named(self.a, self.update, stage) for stage in ("grad", "clip"))
        if not gradients:
            return
        against = {
            key: array
            for key, array in self._recorded.items()
            if stage_of(key) in _OF_OPTIMIZER and not _is_buffer(key)
        }
        given = self._swap("its gradients as well", inputs, gradients, against)
        yield ("forward" if given.closes else None), given
        if given.closes:
            return
        if given.first is not None and given.first.stage == "clip":
            yield "clip", given
            return
        # where one alone clips: gradients that it has clipped, given to the other's optimizer, show whether that is the same
        without_clip = {key: array for key, array in against.items() if stage_of(key) != "clip"}
        last = self._swap("its clipped gradients", inputs, clipped, without_clip) if clipped else self._back()
        yield ("clip" if last is not None and last.closes else "optimizer"), last or given

    def _back(self) -> Swap | None:
        """Give B's clipped gradients to A's step, if B has any."""
        clipped = _named(self.b, self.update, "clip")
        if not clipped:
            return None
        recorded = _recorded(self.b, self.update, ("update", "opt"))
        against = {key: array for key, array in recorded.items() if not _is_buffer(key)}
        held = self.of_b
        computed = self.step_a(held.batch, held.params, held.state, held.buffers, self.update, grads=clipped)
        first = _gap(against, computed, self.update, self.noise)
        return Swap("(the other way) the other's inputs and clipped gradients", first is None, first)

    def step_on(self, inputs: _Inputs, gradients: Arrays | None = None) -> Mapping[str, Any]:
        """Return what B's step makes of some inputs."""
        return self.step_b(inputs.batch, inputs.params, inputs.state, inputs.buffers, self.update, grads=gradients)

    def _swap(
        self, given: str, inputs: _Inputs, gradients: Arrays | None = None, against: Arrays | None = None
    ) -> Swap:
        first = _gap(
            self._recorded if against is None else against, self.step_on(inputs, gradients), self.update, self.noise
        )
        return Swap(given, first is None, first)

    def _is_apart(self, piece: Culprit) -> bool:
        stage = _INPUTS[piece]
        update = self.update - (stage == "opt")
        mine, theirs = (_recorded(each, update, (stage,)) for each in (self.a, self.b))
        return any(not np.array_equal(mine[key], theirs[key], equal_nan=True) for key in mine.keys() & theirs.keys())


def _unlike(step: Step, training: Training, update: int, noise: Noise | None, label: str) -> str:
    """Return a sentence if a step function does not do what its training did."""
    inputs = _inputs(training, update)
    computed = step(inputs.batch, inputs.params, inputs.state, inputs.buffers, update)
    first = _gap(_recorded(training, update, _OF_FORWARD), computed, update, noise)
    if first is None:
        return ""
    return (
        f"given what {label} recorded, its step function does not give what {label} recorded at update {update}: {first.key} is"
        f" {first.distance:.2g} apart. Let it compute the step as the training does"
    )


def _gap(recorded: Arrays, computed: Mapping[str, Any], update: int, noise: Noise | None) -> Divergence | None:
    one = MemoryTraining("recorded", "", {update: dict(recorded)})
    other = MemoryTraining("replayed", "", {update: {key: computed[key] for key in recorded if key in computed}})
    return compare(one, other, noise).first


def _sentence(culprit: Culprit, update: int, labels: Sequence[str], swap: Swap) -> str:
    if culprit == "optimizer state" and swap.given == "nothing":
        return (
            f"At update {update} {labels[1]} did something else than its own step does with what it recorded: what it carries"
            " from step to step (optimizer state, a count, random numbers) is not what it recorded."
        )
    closing = f", which closes the gap when {labels[1]} is given {labels[0]}'s" if swap.closes else ""
    return f"At update {update} the culprit is {_WORDS[culprit]}{closing}."


def _inputs(training: Training, update: int) -> _Inputs:
    before = _recorded(training, update - 1, ("opt",))
    names = {key: key.partition("/")[2] for key in before}
    return _Inputs(
        _named(training, update, "data"),
        _named(training, update, "param"),
        {names[key]: array for key, array in before.items() if not _is_buffer(key)},
        {names[key]: array for key, array in before.items() if _is_buffer(key)},
    )


def _recorded(training: Training, update: int, stages: Sequence[str]) -> dict[str, Array]:
    found = {key: training.array(update, key) for key in training.keys(update) if stage_of(key) in stages}
    return {key: array for key, array in found.items() if array is not None}


def _named(training: Training, update: int, stage: str) -> dict[str, Array]:
    return _named_in(_recorded(training, update, (stage,)), stage)


def _named_in(arrays: Mapping[str, Any], stage: str) -> dict[str, Array]:
    return {key.partition("/")[2]: np.asarray(array) for key, array in arrays.items() if stage_of(key) == stage}


def _is_buffer(key: str) -> bool:
    """Tell whether a key is a module's buffer, not an optimizer's moment or count.

    >>> [_is_buffer(key) for key in ("opt/norm.running_mean", "opt/mu/fc.weight", "opt/count", "grad/fc.weight")]
    [True, False, False, False]
    """
    stage, _, name = key.partition("/")
    return stage == "opt" and "/" not in name and name != "count"


def _exchanged(own: Arrays, other: Arrays) -> Arrays:
    """Return a state with the other's values where both have one."""
    return {name: other.get(name, value) for name, value in own.items()}
