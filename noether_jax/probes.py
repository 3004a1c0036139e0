"""Probe a training step of JAX: what it computed, by stage, under names that frameworks share.

@jax.jit
def train_step(params, opt_state, batch, due):
    (loss, acts), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
    updates, opt_state = tx.update(grads, opt_state, params)
    pieces = {"batch": batch, "params": params, "activations": acts, "losses": loss, "grads": grads}
    probes = probe(due, **pieces, updates=updates, opt_state=opt_state)
    return optax.apply_updates(params, updates), opt_state, {"loss": loss, **probes}

for batch in batches:
    params, opt_state, outputs = train_step(params, opt_state, batch, run.probes_due)
    run.step(outputs)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from noether_core import probes
from noether_core.errors import NoetherError
from noether_core.probes.naming import Names, channels_first, torch_names
from noether_core.probes.probed import KEY, Due, Probed
from noether_core.probes.sampling import DEFAULT_LIMIT
from noether_core.probes.stages import Pieces, check_pieces, with_stage
from noether_core.records import is_box_type, items_of
from noether_jax.backend import BACKEND
from noether_jax.measuring import measured

EVERYTHING = Due(statistics=True, array_limit=DEFAULT_LIMIT)


def probe(
    due: Due = EVERYTHING, *, names: Names = torch_names, images: bool = False, **pieces: Unpack[Pieces]
) -> dict[str, Any]:
    """Return what is to be known of a step's pieces, as update outputs for `run.step`: `{"probes": ...}`, or nothing.

    Pure; for use inside of `jit` and `nnx.jit`, or outside. A piece is any pytree: arrays, dicts, Flax's states.

    Args:
        due: what is probed, as `run.probes_due` says: for a compiled function an argument that needs no `static_argnames`, by
            which it is compiled at most three times. If it is false, nothing is computed.
        names: gives what has the parameters' names, dotted as in `layers.0.kernel`, PyTorch's names and layout.
        images: whether batch and activations of four or five axes have their channels last, to be saved with these second.
        **pieces: see `Pieces`. Activations are such as `intermediate_outputs` of `noether_jax.flax` returns, updates as optax
            does, the optimizer's state optax's or that of `nnx.Optimizer`, buffers such as `nnx.state(model, nnx.BatchStat)`.

    Raises:
        NoetherError: for two arrays of a piece under one name.

    >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    >>> probe(Due(statistics=True), params=params, losses=0.5)
    {'probes': Probed(3 keys, 0 arrays)}
    >>> probe(Due(), params=params)
    {}
    """
    if not due:
        return {}
    as_they_lie: dict[int, Any] = {}

    def laid_out(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        found = names(arrays)
        if names is torch_names:  # which only transposes
            as_they_lie.update(zip(map(id, found.values()), arrays.values(), strict=True))
        return found

    return {KEY: measured(stage_values(names=laid_out, images=images, **pieces), due, as_they_lie)}


def stage_values(*, names: Names = torch_names, images: bool = False, **pieces: Unpack[Pieces]) -> dict[str, Any]:
    """Return a step's arrays whole, by `stage/name`, in the canonical layout; see `probe`, whose arguments these are.

    >>> stage_values(params={"dense": {"kernel": jnp.ones((2, 3))}})["param/dense.weight"].shape
    (3, 2)
    """
    check_pieces(pieces)
    found: dict[str, Any] = {}
    for stage, piece in (("data", "batch"), ("act", "activations"), ("loss", "losses")):
        values = named(stage, pieces.get(piece))
        found |= {key: channels_first(value) for key, value in values.items()} if images and stage != "loss" else values
    for stage, piece in (("param", "params"), ("grad", "grads"), ("clip", "clipped"), ("update", "updates")):
        found |= with_stage(stage, _parameters(stage, pieces.get(piece), names))
    found |= with_stage("opt", _parameters("opt", pieces.get("buffers"), names))
    if pieces.get("opt_state") is not None:
        like = next((pieces[name] for name in ("params", "updates", "grads") if pieces.get(name) is not None), None)
        found |= with_stage("opt", _optimizer(pieces["opt_state"], _flat("params", like), names))
    return found


def named(stage: str, piece: Any) -> dict[str, Any]:
    """Return the arrays of a pytree by `stage/name`; a lone one is the stage's `total`."""
    return with_stage(stage, _flat(stage, piece))


def _parameters(stage: str, piece: Any, names: Names) -> Mapping[str, Any]:
    flat = _flat(stage, piece)
    return names(flat) if flat else {}


def _unboxed(tree: Any) -> Any:
    """Return a pytree with the arrays of Flax's variables in their places."""

    def is_box(node: Any) -> bool:
        return is_box_type(type(node)) and not isinstance(node, jax.Array)

    return jax.tree.map(lambda node: node.get_value() if is_box(node) else node, tree, is_leaf=is_box)


def _flat(stage: str, piece: Any) -> dict[str, Any]:
    """Return the arrays of a pytree by dotted name; a collection `params` around Linen's is no part of it."""
    if piece is None:
        return {}
    found: dict[str, Any] = {}
    tree = _unboxed(piece)
    if isinstance(tree, Mapping) and set(tree) in ({"params"}, {"batch_stats"}):
        tree = next(iter(tree.values()))
    for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
        parts = jax.tree_util.keystr(path, simple=True, separator=".").replace("/", ".")
        name = parts.replace(".__call__", "")
        if stage == "act" and name == "__call__":  # what the whole module returns, which PyTorch's hooks leave out, too
            continue
        if not hasattr(value, "dtype"):
            value = np.asarray(value)
        if jnp.issubdtype(value.dtype, jax.dtypes.extended):  # random keys
            continue
        if name in found:
            raise NoetherError(f"probe got two arrays {name!r} in {stage}; rename one of them")
        found[name] = value
    return found


# ---------------------------------------------------------------------- the optimizer's state


def _optimizer(state: Any, params: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """Return what an optimizer keeps of each parameter, as `mu/NAME`, and how often it was updated, as `count`.

    What is kept of parameters is found by its names and shapes: those of the parameters, or of some of them.
    """
    shapes = {name: value.shape for name, value in params.items()}
    found: dict[str, Any] = {}
    for field, value in _kept(_unboxed(state), "", shapes):
        if field == "count":
            found.setdefault("count", value)
        else:
            own = {f"{field}/{name}": array for name, array in names(value).items()}
            found |= {_free(key, found): array for key, array in own.items()}
    return found


def _free(key: str, taken: Mapping[str, Any]) -> str:
    """Return a key, or with a number where another part of the state has it."""
    field, _, name = key.partition("/")
    number = 1
    while key in taken:
        number += 1
        key = f"{field}{number}/{name}"
    return key


def _kept(state: Any, field: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Any]]:
    """Yield the named fields in an optax state, wherever they are in it, that are counts or look like the parameters."""
    if field == "count" and getattr(state, "shape", None) == ():
        yield field, state
        return
    flat = _flat("opt_state", state) if field else {}
    if flat and all(shapes.get(name) == array.shape for name, array in flat.items()):
        yield field, flat
        return
    is_plain = isinstance(state, Mapping) or type(state) in (tuple, list)
    items = enumerate(state) if type(state) in (tuple, list) else items_of(state)
    for name, value in items or ():
        yield from _kept(value, "" if is_plain else str(name), shapes)


# ---------------------------------------------------------------------- in a run


class ProbeCallback(probes.ProbeCallback):
    """Take what was probed of a JAX step, and save it: its statistics, and its arrays if it has any."""

    backend = BACKEND
    framework = "jax"

    def measured(self, values: Mapping[str, Any], due: Due) -> Probed:
        """Return what is probed of values by key."""
        return measured(values, due)

    def named(self, stage: str, given: Any) -> dict[str, Any]:
        """Return the arrays of a pytree by key."""
        return named(stage, given)


def _flatten(probed: Probed) -> tuple[tuple[Any, Any, tuple[Any, ...]], Any]:
    held = tuple(probed.arrays.values())
    return (probed.reals, probed.sums, held), (probed.keys, probed.shapes, tuple(probed.arrays), probed.limit)


def _unflatten(about: Any, leaves: Any) -> Probed:
    keys, shapes, kept, limit = about
    reals, sums, held = leaves
    return Probed(keys, shapes, reals, sums, dict(zip(kept, held, strict=True)), limit)


jax.tree_util.register_pytree_node(Probed, _flatten, _unflatten)
jax.tree_util.register_static(Due)
