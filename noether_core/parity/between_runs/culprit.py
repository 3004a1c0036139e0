"""Compare two runs, and transplant: from their directories and a step function of each to the part at fault."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from noether_core.names import Matching
from noether_core.parity.between_runs.aligned import Aligned, Mapped
from noether_core.parity.between_runs.answer import compare_pair
from noether_core.parity.between_runs.pair import Given, opened_pair
from noether_core.parity.between_runs.step import Arrays, Inputs, Step, as_step
from noether_core.parity.between_runs.transplant import Transplant, transplant
from noether_core.parity.divergence import Comparison, MemoryTraining


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
    if isinstance(pair, Comparison):
        return Transplant(None, pair.sentence)
    if isinstance(pair.b, Aligned):
        step_b = _renamed(step_b, pair.b.matching)
    return transplant(step_a, step_b, pair.a, pair.b, compare_pair(pair), pair.noise)


def _renamed(step: Step, matching: Matching) -> Step:
    """Return a step that takes and returns the names of the other training.

    Args:
        step: under its own names.
        matching: of the other training's names with these.
    """
    known = {entry.name for entry in matching.entries}

    def own(arrays: Arrays) -> Arrays:
        """Return arrays under the step's own names, those too that an optimizer keeps by `FIELD/NAME`."""
        by_field: dict[str, dict[str, Any]] = {}
        for key, array in arrays.items():
            field, slash, name = key.rpartition("/")
            by_field.setdefault(field + slash, {})[name] = array
        found: dict[str, Any] = {}
        for prefix, named in by_field.items():
            matched = matching.to_flax({name: array for name, array in named.items() if name in known})
            rest = {name: array for name, array in named.items() if name not in known}
            found |= {prefix + name: array for name, array in (matched | rest).items()}
        return found

    def compute(given: Inputs) -> dict[str, Any]:
        params, opt_state, buffers = map(own, (given.params, given.opt_state, given.buffers))
        grads = None if given.grads is None else own(given.grads)
        computed = step(given.batch, params, opt_state, buffers, given.update, grads=grads)
        seen = Aligned(MemoryTraining("", "", {given.update: dict(computed)}), matching)
        found = {key: seen.array(given.update, key) for key in seen.keys(given.update)}
        return {key: array for key, array in found.items() if array is not None}

    return as_step(compute)
