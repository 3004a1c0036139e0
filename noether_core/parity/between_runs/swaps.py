"""Replay steps of a training with pieces of another one, and measure whether they then give what that one recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from noether_core.errors import NoetherError
from noether_core.parity.between_runs.step import (
    PIECES,
    Array,
    Arrays,
    Culprit,
    Inputs,
    Step,
    gap,
    gradients_for,
    is_buffer,
    recorded,
)
from noether_core.parity.divergence import Divergence, Noise, Training, stage_of
from noether_core.probes.fingerprint import holds_numbers
from noether_core.silence import SILENT
from noether_core.text import inert

_OF_FORWARD = ("act", "loss", "grad", "clip", "update", "opt")
_OF_OPTIMIZER = ("clip", "update", "opt")


class StepError(NoetherError, ValueError):
    """Report a step function that raises, or returns something else than arrays by key."""


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


class Replay:
    """Replay updates of B with pieces of A.

    Args:
        steps: of A, of B.
        a: what A recorded.
        b: what B recorded.
        updates: which ones; the first of them is what is said.
        noise: of their twins.
    """

    def __init__(
        self, steps: tuple[Step, Step], a: Training, b: Training, updates: Sequence[int], noise: Noise | None
    ) -> None:
        self.step_a, self.step_b = steps
        self.a, self.b, self.noise = a, b, noise
        self.update = updates[0]
        of_a, of_b = ({update: Inputs.of(each, update) for update in updates} for each in (a, b))
        whole = [u for u in updates[1:] if of_a[u].batch and of_a[u].params and of_b[u].batch and of_b[u].params]
        self.updates = [self.update, *whole]
        self.of_a, self.of_b = ({update: each[update] for update in self.updates} for each in (of_a, of_b))
        self._of_a, self._of_b = self._recorded(a, _OF_FORWARD), self._recorded(b, _OF_FORWARD)

    def problem(self) -> str:
        """Return why this update cannot be replayed, or an empty string."""
        for training, each in ((self.a, self.of_a), (self.b, self.of_b)):
            inputs = each[self.update]
            lacking = [stage for stage, held in (("data", inputs.batch), ("param", inputs.params)) if not held]
            if lacking:
                return (
                    f"{training.label} has no arrays of {' and '.join(lacking)} at update {self.update}: let `probe` keep"
                    " arrays of that update, whole"
                )
        return ""

    def unlike(self) -> Divergence | None:
        """Return where A's step does not give what A recorded, or None."""
        return self._gap(self.step_a, self.of_a, self._of_a)

    def is_blind_to(self, key: str) -> bool:
        """Tell whether B's step lacks the key that differs, and all that it returns is as A recorded it."""
        if key in self._own[self.update] or stage_of(key) in ("data", "param"):
            return False
        given = {update: each.by_key() for update, each in self.of_b.items()}
        return gap(self._of_a, self._own, given, self.noise) is None

    @cached_property
    def _own(self) -> dict[int, Mapping[str, Any]]:
        """What B's step makes of what B recorded."""
        return self._computed(self.step_b, self.of_b)

    def swaps(self) -> Iterator[tuple[Culprit | None, Swap]]:
        """Yield what was tried, and at the end whose fault it is."""
        own = self._swap("nothing", self.of_b, self._of_b)
        yield (None if own.closes else "optimizer state"), own
        if not own.closes:
            return
        apart = [piece for piece in PIECES if self._is_apart(piece)]
        for piece in apart:
            alone = self._swap(f"the {piece} alone", self._with(piece), self._of_a)
            yield (piece if alone.closes else None), alone
        everything = self._with(*PIECES)
        whole = self._swap("batch, parameters and state", everything, self._of_a)
        if whole.closes:
            yield next(iter(apart), "optimizer state"), whole
            return
        yield None, whole
        yield from self._by_gradients(everything, whole)

    def _by_gradients(self, inputs: Mapping[int, Inputs], whole: Swap) -> Iterator[tuple[Culprit | None, Swap]]:
        gradients, clipped = self._gradients("grad"), self._gradients("clip")
        if not any(gradients.values()):
            return
        against = self._recorded(self.a, _OF_OPTIMIZER, buffers=False)
        given = self._swap("its gradients as well", _with_gradients(inputs, gradients), against)
        culprit = self._by_stage(whole)
        if culprit is not None or given.closes:
            yield culprit or "forward", given
            return
        # where one alone clips: gradients that it has clipped, given to the other's optimizer, show whether that is the same
        if any(clipped.values()):
            without_clip = self._recorded(self.a, ("update", "opt"), buffers=False)
            last: Swap | None = self._swap("its clipped gradients", _with_gradients(inputs, clipped), without_clip)
        else:
            last = self._back()
        yield ("optimizer" if last is None else None), given
        if last is not None:
            yield ("clip" if last.closes else "optimizer"), last

    def _by_stage(self, whole: Swap) -> Culprit | None:
        """Return the part whose stage is the first that B's step gives otherwise from A's inputs; None if that leaves it open.

        It does where a step returns no gradients, and where one side alone says what it clipped.
        """
        first, computed = whole.first, self._own[self.update]
        stages = {stage_of(key) for key in computed}
        if first is None or "grad" not in stages:
            return None
        if first.stage not in _OF_OPTIMIZER or is_buffer(first.key):
            return "forward"
        if first.stage == "clip":
            return "clip"
        clip = [any(stage_of(key) == "clip" for key in each) for each in (computed, self._of_a[self.update])]
        return "optimizer" if clip[0] == clip[1] else None

    def _back(self) -> Swap | None:
        """Give B's clipped gradients to A's step, if B has any."""
        clipped = {update: gradients_for(self.a, self.b, update, "clip") for update in self.updates}
        if not any(clipped.values()):
            return None
        against = self._recorded(self.b, ("update", "opt"), buffers=False)
        first = self._gap(self.step_a, _with_gradients(self.of_b, clipped), against)
        return Swap("(the other way) the other's inputs and clipped gradients", first is None, first)

    def _gradients(self, stage: str) -> dict[int, dict[str, Any]]:
        return {update: gradients_for(self.b, self.a, update, stage) for update in self.updates}

    def _with(self, *pieces: Culprit) -> dict[int, Inputs]:
        return {update: own.but(self.of_a[update], *pieces) for update, own in self.of_b.items()}

    def _recorded(self, training: Training, stages: Sequence[str], buffers: bool = True) -> dict[int, Arrays]:
        found = {update: recorded(training, update, stages) for update in self.updates}
        return {
            update: {key: array for key, array in each.items() if buffers or not is_buffer(key)}
            for update, each in found.items()
        }

    def _swap(self, given: str, inputs: Mapping[int, Inputs], against: Mapping[int, Arrays]) -> Swap:
        first = self._gap(self.step_b, inputs, against, f"{given} of {self.a.label}")
        return Swap(given, first is None, first)

    def _gap(
        self,
        step: Step,
        inputs: Mapping[int, Inputs],
        against: Mapping[int, Arrays],
        given: str = "what it recorded",
    ) -> Divergence | None:
        beside = {update: each.by_key() for update, each in inputs.items()}
        return gap(against, self._computed(step, inputs, given), beside, self.noise)

    def _computed(
        self, step: Step, inputs: Mapping[int, Inputs], given: str = "what it recorded"
    ) -> dict[int, Mapping[str, Any]]:
        """Return what a step makes of some inputs, by update."""
        try:
            return {update: _as_arrays(each.to(step)) for update, each in inputs.items()}
        except Exception as error:  # it is a stranger's code
            whose = self.a if step is self.step_a else self.b
            what = f"{whose.label}'s step function, given {given}, failed ({type(error).__name__}: {error!s:.300})"
            raise StepError(inert(what)) from error

    @SILENT
    def _is_apart(self, piece: Culprit) -> bool:
        stage = PIECES[piece]
        update = self.update - (stage == "opt")
        mine, theirs = (recorded(each, update, (stage,)) for each in (self.a, self.b))
        return any(not np.array_equal(mine[key], theirs[key], equal_nan=True) for key in mine.keys() & theirs.keys())


def _with_gradients(inputs: Mapping[int, Inputs], gradients: Mapping[int, Arrays]) -> dict[int, Inputs]:
    return {update: each._replace(grads=gradients[update]) for update, each in inputs.items()}


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
