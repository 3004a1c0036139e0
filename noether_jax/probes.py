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

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Unpack

import jax
import numpy as np

from noether_core import probes
from noether_core.probes import walk
from noether_core.probes.fingerprint import holds_numbers
from noether_core.probes.naming import Names, channels_first, torch_names
from noether_core.probes.probed import KEY, Due, Probed
from noether_core.probes.sampling import DEFAULT_LIMIT
from noether_core.probes.stages import Pieces
from noether_core.probes.walk import Reader
from noether_core.records import is_box_type, items_of
from noether_jax.backend import BACKEND
from noether_jax.measuring import measured

_COLLECTIONS = frozenset(("params", "batch_stats", "cache", "intermediates", "perturbations"))  # of Linen
_NO_PARAMETERS = ("RngState", "BatchStat", "Cache", "Intermediate", "Perturbation")  # of NNX's variables
_NO_BUFFERS = ("RngState", "Param", "Cache", "Intermediate", "Perturbation")
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
            does, the optimizer's state optax's, an `nnx.Optimizer` or its `nnx.state`, buffers such as
            `nnx.state(model, nnx.BatchStat)`.

    Raises:
        NoetherError: for two arrays of a piece under one name.

    >>> params = {"dense": {"kernel": np.ones((2, 3)), "bias": np.zeros(3)}}
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

    >>> stage_values(params={"dense": {"kernel": np.ones((2, 3))}})["param/dense.weight"].shape
    (3, 2)
    """
    return walk.stage_values(READER._replace(flat=_with_channels_first if images else _flat), pieces, names)


def _with_channels_first(stage: str, piece: Any) -> Iterator[tuple[str, Any]]:
    for name, value in _flat(stage, piece):
        yield name, channels_first(value) if stage in ("data", "act") else value


def _unboxed(tree: Any, left_out: Collection[str] = ()) -> Any:
    """Return a pytree with the arrays of Flax's variables in their places, without variables of some kinds."""

    def is_box(node: Any) -> bool:
        kind = type(node)
        return (is_box_type(kind) or hasattr(kind, "replace_boxed")) and not isinstance(node, jax.Array)

    def value_of(node: Any) -> Any:
        if not is_box(node):
            return node
        if hasattr(node, "replace_boxed"):  # Linen's, of an array that is partitioned
            return node.unbox()
        return None if any(kind.__name__ in left_out for kind in type(node).__mro__) else node.get_value()

    return jax.tree.map(value_of, tree, is_leaf=is_box)


def _flat(stage: str, piece: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers of a pytree by dotted name, and those of records in it.

    Of Flax's variables a stage has its own: parameters are no statistics, buffers no parameters, and random states neither.
    """
    if stage in ("data", "loss"):
        tree = _unboxed(piece)
    elif stage == "opt" and type(piece) is dict:
        tree = {name: _buffers(each) for name, each in piece.items()}
    else:
        tree = _unboxed(piece, {"opt": _NO_BUFFERS, "act": ()}.get(stage, _NO_PARAMETERS))
    if stage not in ("data", "loss") and isinstance(tree, Mapping) and set(tree) <= _COLLECTIONS:
        tree = _of_collections(stage, tree)
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if (record := items_of(leaf)) is not None:
            yield from ((f"{name}.{below}".lstrip("."), value) for below, value in _flat(stage, dict(record)))
        else:
            value = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
            if holds_numbers(value.dtype):
                yield name, value


def _buffers(piece: Any) -> Any:
    """Return what is called buffers by a name: without parameters, unless there is nothing else, as of averaged weights."""
    found = _unboxed(piece, _NO_BUFFERS)
    return found if jax.tree.leaves(found) else _unboxed(piece)


def _of_collections(stage: str, variables: Mapping[str, Any]) -> Any:
    """Return what a stage has of Linen's variables: of all the parameters, as buffers the rest, and a lone collection's own."""
    if stage == "opt":
        variables = {name: tree for name, tree in variables.items() if name != "params"}
    elif "params" in variables:
        return variables["params"]
    return next(iter(variables.values())) if len(variables) == 1 else variables


# ---------------------------------------------------------------------- the optimizer's state


def _optimizer(state: Any, pieces: Pieces) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what an optimizer keeps of each parameter, by field, and how often it was updated, as `count`, once.

    What is kept of parameters is found by its names and shapes: those of the parameters, or of some of them. Several models'
    optimizers come as a dict by model, as their parameters do; then each has a count.
    """
    given: Mapping[str, Any] = pieces
    like = next((given[name] for name in ("params", "updates", "grads") if given.get(name) is not None), None)
    shapes = {name: value.shape for name, value in walk.flat(READER, "param", like).items()}
    tree = _unboxed(state)
    models = {model: _inside(shapes, f"{model}.") for model in tree} if isinstance(tree, Mapping) else {}
    if not models or not all(models.values()):
        yield from _of_one(tree, shapes)
        return
    for model, own in models.items():
        for field, kept in _of_one(tree[model], own):
            yield "" if field == "count" else field, {f"{model}.{name}": each for name, each in kept.items()}


def _inside(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, tuple[int, ...]]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _of_one(state: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what one optimizer keeps; of several counts the first."""
    is_counted = False
    for field, kept in _kept(state, "", shapes):
        if field != "count":
            yield _LIKE.get(field, field), kept
        elif not is_counted:
            is_counted = True
            yield field, {"count": kept}


_LIKE = {"e_g": "nu"}  # Adadelta's second moment, as every other optimizer's


def _kept(state: Any, field: str, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, Any]]:
    """Yield the named fields in an optax state, wherever they are in it, that are counts or look like the parameters."""
    if field == "count" and getattr(state, "shape", None) == ():
        yield field, state
        return
    flat = walk.flat(READER, "opt_state", state) if field else {}
    if flat and all(shapes.get(name) == array.shape for name, array in flat.items()):
        yield field, flat
        return
    items = enumerate(state) if type(state) in (tuple, list) else items_of(state)
    for name, value in items or ():  # of NNX's states dicts have the fields' names, and the numbers of tuples' places
        yield from _kept(value, name if isinstance(name, str) else "", shapes)


READER = Reader(_flat, _optimizer, "optax's state, an `nnx.Optimizer` or its `nnx.state`")

# ---------------------------------------------------------------------- in a run


class ProbeCallback(probes.ProbeCallback):
    """Take what was probed of a JAX step, and save it: its statistics, and its arrays if it has any."""

    backend = BACKEND
    framework = "jax"

    reader = READER
    measured = staticmethod(measured)


def _flatten(probed: Probed) -> tuple[tuple[Any, Any, tuple[Any, ...]], Any]:
    held = tuple(probed.arrays.values())
    return (probed.reals, probed.sums, held), (probed.keys, probed.shapes, tuple(probed.arrays), probed.limit)


def _unflatten(about: Any, leaves: Any) -> Probed:
    keys, shapes, kept, limit = about
    reals, sums, held = leaves
    return Probed(keys, shapes, reals, sums, dict(zip(kept, held, strict=True)), limit)


jax.tree_util.register_pytree_node(Probed, _flatten, _unflatten)
jax.tree_util.register_static(Due)
