"""Give the steps that transplanting replays: from canonical arrays to canonical keys, in either framework."""

from __future__ import annotations

from functools import cache

from benchmarks.porting_bugs import stepped
from benchmarks.porting_bugs.families import FAMILIES, bug_named
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.truth import Framework
from noether_core.parity.between_runs.step import Inputs, Step, as_step


@cache
def step_of(family: str, framework: Framework, bug: str | None = None) -> stepped.Step:
    """Return a step; what it has compiled serves all seeds and twins."""
    return FAMILIES[family].step(framework, None if bug is None else bug_named(bug))


def step_function(family: str, framework: Framework, bug: str | None = None) -> Step:
    """Return a step as `noether_core.parity.between_runs.transplant` asks for it.

    The function takes a batch, parameters, optimizer state and buffers by canonical names, in PyTorch's layouts, and the
    update's number. Where state and buffers are empty, it begins with fresh ones. With `grads` it skips both passes.
    """
    spec, step = FAMILIES[family], step_of(family, framework, bug)
    recipe = spec.recipe(framework, None if bug is None else bug_named(bug))

    def compute(given: Inputs) -> Arrays:
        state = given.opt_state or recipe.state(dict(given.params))
        buffers = given.buffers or recipe.buffers(spec.buffers())
        return step(given._replace(opt_state=state, buffers=buffers)).keys(given.batch, given.params)

    return as_step(compute)
