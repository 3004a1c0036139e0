"""Train the JAX side of a pair with probes, as a user's script does, and replay its steps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.porting_exam.pair import Arrays, Options, Pair, losses_by_name, under
from noether_core.parity.between_runs.replayable import micro_batches
from noether_core.parity.between_runs.step import Inputs
from noether_core.probes.probed import KEY
from noether_jax import Run, probe, twin, twin_batch, twin_path
from noether_jax.names import load
from noether_jax.probes import EVERYTHING, stage_values


class JaxSide:
    """Train, and replay steps; see `TorchSide`."""

    def __init__(self, pair: Pair, options: Options) -> None:
        self.pair, self.options = pair, options
        self.steps = options.get("accumulation", 1)
        self.like, self.matching, self.losses = pair.jax_model(options)
        self.optimizer = pair.jax_optimizer(options)
        self.names = {"names": self.matching.named} if pair.matched else {}
        self.differentiate = jax.jit(self._differentiate)
        self.apply = jax.jit(self._apply)

    def train(self, path: Path, seed: int) -> None:
        """Train into a run directory, or a twin of that run into its own."""
        params = twin(_filled(self.like, self.pair.weights(seed), self.matching))
        state, averages = self.optimizer.init(params), jax.tree.map(jnp.copy, params)
        with Run(twin_path(path), [{"kind": "ProbeCallback"}], accumulation_steps=self.steps) as run:
            for update, batch in enumerate(self.pair.batches(seed, self.options), 1):
                summed = None
                if update == self.options.get("reset_at"):
                    state = self.optimizer.init(params)
                for step in range(self.steps):
                    parts = {name: np.array_split(value, self.steps)[step] for name, value in batch.items()}
                    micro = twin_batch({name: jnp.asarray(value) for name, value in parts.items()})
                    grads, losses, probes = self.differentiate(params, micro, run.probes_due)
                    summed = _sum(summed, grads)
                    if step == self.steps - 1:
                        due = run.probes_due
                        params, state, averages, more = self.apply(params, state, averages, summed, due)
                        run.add_probes(more)
                    run.step({"loss": losses["total"], **probes})

    def step(self, given: Inputs) -> Arrays:
        """Compute a step from what was recorded, of either side; see `noether_core.parity.between_runs.Step`."""
        tree = _filled(self.like, given.params, self.matching)
        state = self.optimizer.init(tree)
        if given.opt_state:
            state = _restored(state, given.opt_state, self.matching)
        kept = {name.removeprefix("ema."): value for name, value in given.buffers.items()}
        averages = _filled(self.like, kept, self.matching) if kept else tree
        found: Arrays = {}
        summed = None if given.grads is None else _filled(self.like, given.grads, self.matching)
        for number, micro in enumerate(micro_batches(given.batch) if given.grads is None else ()):
            arrays = {name: jnp.asarray(value) for name, value in micro.items()}
            one, losses, probes = self.differentiate(tree, arrays, EVERYTHING)
            summed = _sum(summed, one)
            ending = f"@{number}" if number else ""
            acts = {key: value for key, value in probes[KEY].arrays.items() if key.startswith("act/")}
            found |= {key + ending: value for key, value in (acts | stage_values(losses=losses)).items()}
        if given.grads is None:
            summed = jax.tree.map(lambda each: each / self.steps, summed)
        _, _, pieces = self._optimize(tree, state, averages, summed)
        found |= stage_values(**pieces, **self.names)
        return {key: np.asarray(value) for key, value in found.items() if not key.startswith("param/")}

    def _differentiate(self, params: Any, batch: Any, due: Any) -> tuple[Any, Any, Any]:
        def total(params: Any) -> tuple[Any, Any]:
            losses, activations = self.losses(params, batch, self.options)
            named = losses_by_name(losses)
            return named["total"], (named, activations)

        grads, (losses, activations) = jax.grad(total, has_aux=True)(params)
        probes = probe(due, batch=batch, activations=activations, losses=losses, **self.names)
        return grads, losses, probes

    def _apply(self, params: Any, state: Any, averages: Any, summed: Any, due: Any) -> tuple[Any, Any, Any, Any]:
        grads = jax.tree.map(lambda each: each / self.steps, summed)
        new, averages, pieces = self._optimize(params, state, averages, grads)
        return new, pieces["opt_state"], averages, probe(due, **pieces, **self.names)

    def _optimize(self, params: Any, state: Any, averages: Any, grads: Any) -> tuple[Any, Any, dict[str, Any]]:
        pieces: dict[str, Any] = {"params": params, "grads": grads}
        if self.options.get("clip") is not None:
            pieces["clipped"] = _clipped(grads, self.options)
        updates, state = self.optimizer.update(pieces.get("clipped", grads), state, params)
        new = jax.tree.map(jnp.add, params, updates)
        if (decay := self.options.get("average")) is not None:
            of = params if self.options["average_early"] else new
            if self.options["average_warm"]:
                count = optax.tree_utils.tree_get(state, "count")
                decay = jnp.minimum(decay, (1 + count) / (10 + count))
            averages = jax.tree.map(lambda old, value: old * decay + value * (1 - decay), averages, of)
            pieces["buffers"] = {"ema": averages}
        return new, averages, {**pieces, "updates": updates, "opt_state": state}


def _sum(summed: Any, grads: Any) -> Any:
    return grads if summed is None else jax.tree.map(jnp.add, summed, grads)


def _clipped(grads: Any, options: Options) -> Any:
    leaves = jax.tree.leaves(grads)
    if options["clip_by"] == "largest element":
        norm = jnp.max(jnp.stack([jnp.abs(each).max() for each in leaves]))
    else:
        norm = jnp.sqrt(sum(jnp.sum(each * each) for each in leaves))
    factor = jnp.minimum(1.0, options["clip"] / (norm + 1e-6))
    return jax.tree.map(lambda each: each * factor, grads)


def _filled(tree: Any, canonical: Mapping[str, Any], matching: Any) -> Any:
    """Return a tree of parameters with other values, given under PyTorch's names."""
    if matching is not None:
        return load(tree, canonical, matching)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.asarray(canonical[jax.tree_util.keystr(path, simple=True, separator=".")], leaf.dtype),
        tree,
    )


def _restored(state: Any, canonical: Mapping[str, Any], matching: Any, name: str = "") -> Any:
    """Return an optax state with what was recorded as `opt/FIELD/NAME` in its fields of that name."""
    if hasattr(state, "_fields"):
        fields = (_restored(getattr(state, each), canonical, matching, each) for each in state._fields)
        return type(state)(*fields)
    if isinstance(state, tuple):
        return tuple(_restored(each, canonical, matching, name) for each in state)
    if name == "count":
        return jnp.asarray(canonical["count"], jnp.int32) if "count" in canonical else state
    kept = under(canonical, name)
    return _filled(state, kept, matching) if kept else state
