"""Compare two runs, and transplant: from their directories and a step function of each to the part at fault."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noether_core.names import Matching
from noether_core.parity.between_runs.aligned import Aligned, Mapped
from noether_core.parity.between_runs.comparing import Given, compare_pair, opened_pair
from noether_core.parity.between_runs.replay_step import Step
from noether_core.parity.between_runs.step_inputs import Arrays
from noether_core.parity.between_runs.transplant import Transplant, transplant
from noether_core.parity.divergence import MemoryTraining


def find_culprit(
    step_a: Step, step_b: Step, a: Given, b: Given, *, twins: Sequence[Given] = (), mapping: Mapped = None
) -> Transplant:
    """Compare two trainings, replay the first differing step, and name the part of it that makes them differ.

    Each step function gets what was recorded under its own training's names, whatever the other's are.

    Args:
        step_a: of the first training: `noether_torch.replay.replayable(…)`, `noether_jax.replay.replayable(…)`, or any `Step`.
        step_b: of the second.
        a: see `compare_trainings`; so for the rest.
        b: the other one.
        twins: of either.
        mapping: of names.

    Raises:
        RunFormatError: for a path that is no run directory.
        TwinError: if one of `twins` is a twin of neither.
        ReplayError: from a step, for what cannot be put into its model.

    Example::

        print(find_culprit(step_of_torch, step_of_jax, "runs/torch", "runs/jax").sentence)
    """
    pair = opened_pair(a, b, twins, mapping)
    if isinstance(pair, str):
        return Transplant(None, pair)
    if isinstance(pair.b, Aligned):
        step_b = _Renamed(step_b, pair.b.matching)
    return transplant(step_a, step_b, pair.a, pair.b, compare_pair(pair), pair.noise)


class _Renamed:
    """Let a step of one training take and return another one's names.

    Args:
        step: under its own names.
        matching: of the other training's names with these.
    """

    def __init__(self, step: Step, matching: Matching) -> None:
        self._step, self._matching = step, matching
        self._known = {entry.name for entry in matching.entries}

    def __call__(
        self,
        batch: Arrays,
        params: Arrays,
        opt_state: Arrays,
        buffers: Arrays,
        update: int,
        grads: Arrays | None = None,
    ) -> Mapping[str, Any]:
        """Return what the step computes, under the other's names."""
        own_grads = None if grads is None else self._own(grads)
        computed = self._step(
            batch, self._own(params), self._own(opt_state), self._own(buffers), update, grads=own_grads
        )
        seen = Aligned(MemoryTraining("", "", {update: dict(computed)}), self._matching)
        found = {key: seen.array(update, key) for key in seen.keys(update)}
        return {key: array for key, array in found.items() if array is not None}

    def _own(self, arrays: Arrays) -> Arrays:
        """Return arrays under the step's own names, those too that an optimizer keeps by `FIELD/NAME`."""
        by_field: dict[str, dict[str, Any]] = {}
        for key, array in arrays.items():
            field, slash, name = key.rpartition("/")
            by_field.setdefault(field + slash, {})[name] = array
        found: dict[str, Any] = {}
        for prefix, named in by_field.items():
            matched = {name: array for name, array in named.items() if name in self._known}
            rest = {name: array for name, array in named.items() if name not in self._known}
            own = self._matching.to_flax(matched)
            found |= {prefix + name: array for name, array in (own | rest).items()}
        return found
