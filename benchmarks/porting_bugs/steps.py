"""Give the steps that transplanting replays: from canonical arrays to canonical keys, in either framework."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from benchmarks.porting_bugs.families import FAMILIES, bug_named
from benchmarks.porting_bugs.layouts import Array, Arrays
from benchmarks.porting_bugs.stepped import Step
from benchmarks.porting_bugs.truth import Framework

StepFunction = Callable[..., Arrays]
"""From batch, params, opt_state, buffers and update (and grads) to canonical keys."""


@cache
def step_of(family: str, framework: Framework, bug: str | None = None) -> Step:
    """Return a step; what it has compiled serves all seeds and twins."""
    return FAMILIES[family].step(framework, None if bug is None else bug_named(bug))


def step_function(family: str, framework: Framework, bug: str | None = None) -> StepFunction:
    """Return a step as `noether_core.parity.between_runs.transplant` asks for it.

    The function takes a batch, parameters, optimizer state and buffers by canonical names, in PyTorch's layouts, and the
    update's number. Where state and buffers are empty, it begins with fresh ones. With `grads` it skips both passes.
    """
    spec, step = FAMILIES[family], step_of(family, framework, bug)
    recipe = spec.recipe(framework, None if bug is None else bug_named(bug))

    def compute(
        batch: Mapping[str, Array],
        params: Mapping[str, Array],
        opt_state: Mapping[str, Array],
        buffers: Mapping[str, Array],
        update: int,
        grads: Mapping[str, Array] | None = None,
    ) -> Arrays:
        state = dict(opt_state) or recipe.state(dict(params))
        kept = dict(buffers) or recipe.buffers(spec.buffers())
        given = None if grads is None else dict(grads)
        return step(dict(batch), dict(params), state, kept, update, given).keys(dict(batch), dict(params))

    return compute
