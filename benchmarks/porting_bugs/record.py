"""Record trainings: of either framework, correct or with a bug, or a twin that starts one rounding error apart."""

from __future__ import annotations

import numpy as np

from benchmarks.porting_bugs.families import FAMILIES, bug_named
from benchmarks.porting_bugs.layouts import Arrays
from benchmarks.porting_bugs.steps import step_of
from benchmarks.porting_bugs.truth import Framework
from noether_core.parity.between_runs.step import Inputs
from noether_core.parity.divergence.training import MemoryTraining

UPDATES = 12
TWINS = 4
"""How many twins a framework has by default: their noise is that of `Noise.of_twins`."""
FRAMEWORKS: tuple[Framework, ...] = ("torch", "jax")


def record(
    family: str,
    framework: Framework,
    bug: str | None = None,
    seed: int = 0,
    updates: int = UPDATES,
    nudge: int | None = None,
    permute: bool = False,
) -> MemoryTraining:
    """Return all that a training computes, under canonical keys, in PyTorch's layouts.

    Args:
        family: one of `FAMILIES`.
        framework: `torch` or `jax`.
        bug: the id of a bug to plant, or of another way to go; it changes nothing if it is the other framework's.
        seed: of weights and batches.
        updates: how many.
        nudge: the seed by which each weight but zeros starts one float up or down.
        permute: whether each micro-batch's rows are fed in another order; what is recorded has them in theirs.
    """
    spec = FAMILIES[family]
    recipe = spec.recipe(framework, None if bug is None else bug_named(bug))
    step = step_of(family, framework, bug)
    params = recipe.load(spec.weights(seed))
    params = params if nudge is None else nudged(params, nudge)
    state = recipe.state(params)
    buffers = recipe.buffers(spec.buffers())
    arrays: dict[int, Arrays] = {}
    for update, batch in enumerate(recipe.prepare(spec.batches(seed, updates)), 1):
        order = _order(batch, recipe.accumulation, seed + update) if permute else None
        fed = batch if order is None else {name: value[order] for name, value in batch.items()}
        stepped = step(Inputs(fed, params, state, buffers, update))
        arrays[update] = _unpermuted(stepped.keys(fed, params), order)
        params, state, buffers = stepped.params, stepped.opt_state, stepped.buffers
    settings = {"family": family, "seed": seed, "bug": bug or "", "nudge": nudge, "permute": permute}
    return MemoryTraining(bug or f"{family} in {framework}", framework, arrays, settings)


def twin(family: str, framework: Framework, number: int, seed: int = 0, bug: str | None = None) -> MemoryTraining:
    """Return a twin of a training: all its weights nudged, in every other one the rows permuted too."""
    return record(family, framework, bug, seed, nudge=number, permute=number % 2 == 1)


def nudged(weights: Arrays, seed: int) -> Arrays:
    """Return weights of which each but zeros is the next float up or down, by the toss of a coin.

    >>> nudged({"w": np.array([1.0, 0.0], np.float32)}, 0)["w"] == np.array([1.0, 0.0], np.float32)
    array([False,  True])
    """
    generator = np.random.default_rng([seed, 3])
    return {name: _nudged(value, generator) for name, value in weights.items()}


def _nudged(value: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    towards = np.where(generator.random(value.shape) < 0.5, -np.inf, np.inf).astype(value.dtype)
    return np.where(value == 0, value, np.nextafter(value, towards))


def _order(batch: Arrays, shares: int, seed: int) -> np.ndarray:
    """Return an order of a batch's rows that leaves each in its micro-batch."""
    generator = np.random.default_rng([seed, 4])
    rows = np.arange(len(next(iter(batch.values())))).reshape(shares, -1)
    return np.concatenate([generator.permutation(each) for each in rows])


def _unpermuted(keys: Arrays, order: np.ndarray | None) -> Arrays:
    if order is None:
        return keys
    inverse = np.argsort(order)
    return {key: value[inverse] if key.startswith(("data/", "act/")) else value for key, value in keys.items()}
