"""Replay one step of a training with pieces of another one, and measure whether it then gives what that one recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from noether_core.errors import NoetherError
from noether_core.parity.divergence import Divergence, MemoryTraining, Noise, Training, compare, stage_of
from noether_core.probes.fingerprint import holds_numbers
from noether_core.silence import SILENT
from noether_core.text import inert

Array = np.ndarray[Any, Any]
Arrays = Mapping[str, Array]
Culprit = Literal["batch", "params", "optimizer state", "forward", "clip", "optimizer"]

_OF_FORWARD = ("act", "loss", "grad", "clip", "update", "opt")
_OF_OPTIMIZER = ("clip", "update", "opt")
_INPUTS: Mapping[Culprit, str] = {"batch": "data", "params": "param", "optimizer state": "opt"}


class StepError(NoetherError, ValueError):
    """Report a step function that raises, or returns something else than arrays by key."""


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
class _Inputs:
    batch: Arrays
    params: Arrays
    state: Arrays
    buffers: Arrays

    def but(self, other: _Inputs, piece: Culprit) -> _Inputs:
        """Return these inputs with one piece of the other's."""
        return _Inputs(
            _as_own(self.batch, other.batch) if piece == "batch" else self.batch,
            _exchanged(self.params, other.params) if piece == "params" else self.params,
            _exchanged(self.state, other.state) if piece == "optimizer state" else self.state,
            _exchanged(self.buffers, other.buffers) if piece == "optimizer state" else self.buffers,
        )


class Replay:
    """Replay one update of B with pieces of A.

    Args:
        steps: of A, of B.
        a: what A recorded.
        b: what B recorded.
        update: which one.
        noise: of their twins.
    """

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

    def unlike(self) -> Divergence | None:
        """Return where A's step does not give what A recorded, or None."""
        held = self.of_a
        computed = self._computed(self.a, held)
        return _gap(self._recorded, computed, self.update, self.noise, _given(held))

    def blindness(self, key: str) -> str:
        """Return that B's step lacks the key that differs, if all that it returns is as A recorded it; or an empty string."""
        computed = self._computed(self.b, self.of_b)
        if key in computed or stage_of(key) in ("data", "param"):
            return ""
        if _gap(self._recorded, computed, self.update, self.noise, {}) is not None:
            return ""
        return (
            f"{self.b.label}'s step function does not return {inert(key)}, and all that it returns is the same. Let it return"
            " what `probe` records"
        )

    def swaps(self) -> Iterator[tuple[Culprit | None, Swap]]:
        """Yield what was tried, and at the end whose fault it is."""
        own = self._swap("nothing", self.of_b, against=_recorded(self.b, self.update, _OF_FORWARD))
        yield (None if own.closes else "optimizer state"), own
        if not own.closes:
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
        gradients, clipped = (self._gradients_for(self.b, self.a, stage) for stage in ("grad", "clip"))
        if not gradients:
            return
        against = {
            key: array
            for key, array in self._recorded.items()
            if stage_of(key) in _OF_OPTIMIZER and not _is_buffer(key)
        }
        given = self._swap("its gradients as well", inputs, gradients, against)
        is_clip = given.first is not None and given.first.stage == "clip"
        if given.closes or is_clip:
            yield ("forward" if given.closes else "clip"), given
            return
        # where one alone clips: gradients that it has clipped, given to the other's optimizer, show whether that is the same
        without_clip = {key: array for key, array in against.items() if stage_of(key) != "clip"}
        last = self._swap("its clipped gradients", inputs, clipped, without_clip) if clipped else self._back()
        yield ("optimizer" if last is None else None), given
        if last is not None:
            yield ("clip" if last.closes else "optimizer"), last

    def _gradients_for(self, own: Training, other: Training, stage: str) -> Arrays:
        """Return the other's gradients for the parameters that one has; its own of those that the other lacks."""
        theirs, has = _named(other, self.update, stage), _named(own, self.update, "grad")
        return _exchanged(has, theirs) if theirs and has else theirs

    def _back(self) -> Swap | None:
        """Give B's clipped gradients to A's step, if B has any."""
        clipped = self._gradients_for(self.a, self.b, "clip")
        if not clipped:
            return None
        recorded = _recorded(self.b, self.update, ("update", "opt"))
        against = {key: array for key, array in recorded.items() if not _is_buffer(key)}
        held = self.of_b
        computed = self._computed(self.a, held, clipped)
        first = _gap(against, computed, self.update, self.noise, _given(held, clipped))
        return Swap("(the other way) the other's inputs and clipped gradients", first is None, first)

    def _computed(
        self, whose: Training, inputs: _Inputs, gradients: Arrays | None = None, given: str = "what it recorded"
    ) -> Arrays:
        """Return what one's step makes of some inputs. It is given copies, for it may write into them."""
        step = self.step_a if whose is self.a else self.step_b
        batch, params, state, buffers = map(_copied, (inputs.batch, inputs.params, inputs.state, inputs.buffers))
        grads = None if gradients is None else _copied(gradients)
        try:
            return _as_arrays(step(batch, params, state, buffers, self.update, grads=grads))
        except Exception as error:  # it is a stranger's code
            what = f"{whose.label}'s step function, given {given}, failed ({type(error).__name__}: {error!s:.300})"
            raise StepError(inert(what)) from error

    def _swap(
        self, given: str, inputs: _Inputs, gradients: Arrays | None = None, against: Arrays | None = None
    ) -> Swap:
        recorded = self._recorded if against is None else against
        computed = self._computed(self.b, inputs, gradients, f"{given} of {self.a.label}")
        first = _gap(recorded, computed, self.update, self.noise, _given(inputs, gradients))
        return Swap(given, first is None, first)

    @SILENT
    def _is_apart(self, piece: Culprit) -> bool:
        stage = _INPUTS[piece]
        update = self.update - (stage == "opt")
        mine, theirs = (_recorded(each, update, (stage,)) for each in (self.a, self.b))
        return any(not np.array_equal(mine[key], theirs[key], equal_nan=True) for key in mine.keys() & theirs.keys())


def _copied(arrays: Arrays) -> dict[str, Array]:
    return {name: np.array(array) for name, array in arrays.items()}


def _as_arrays(returned: Any) -> dict[str, Array]:
    """Return what a step returned as arrays of NumPy."""
    if not isinstance(returned, Mapping):
        raise TypeError(f"it returned {type(returned).__name__}; expected a dict from keys to arrays")
    found = {}
    for key, value in returned.items():
        array = found[str(key)] = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
        if not holds_numbers(array.dtype):
            raise TypeError(f"it returned {type(value).__name__} for {key!r:.200}; expected an array of numbers")
    return found


def _given(inputs: _Inputs, gradients: Arrays | None = None) -> dict[str, Array]:
    """Return what a step was given, by key: parameters and gradients say how far rounding moves what follows from them."""
    params = {f"param/{name}": array for name, array in inputs.params.items()}
    return params | {f"grad/{name}": array for name, array in (gradients or {}).items()}


def _gap(
    recorded: Arrays, computed: Mapping[str, Any], update: int, noise: Noise | None, given: Arrays
) -> Divergence | None:
    """Return where a step did not compute what was recorded, beside what it was given."""
    one = MemoryTraining("recorded", "", {update: {**given, **recorded}})
    replayed = {key: computed[key] for key in recorded if key in computed}
    other = MemoryTraining("replayed", "", {update: {**given, **replayed}})
    return compare(one, other, noise).first


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
    return {key.partition("/")[2]: array for key, array in _recorded(training, update, (stage,)).items()}


def _is_buffer(key: str) -> bool:
    """Tell whether a key is a module's buffer, not an optimizer's moment or count.

    >>> [_is_buffer(key) for key in ("opt/norm.running_mean", "opt/mu/fc.weight", "opt/count", "grad/fc.weight")]
    [True, False, False, False]
    """
    stage, _, name = key.partition("/")
    return stage == "opt" and "/" not in name and name != "count"


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
