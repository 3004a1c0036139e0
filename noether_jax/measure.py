"""Measure one call of an optimizer: the norms of gradients, updates and parameters, by groups, and the learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped] # it ships without types

from noether_core.errors import NoetherError

Groups = Any  # a pytree of labels, a prefix of the parameters' tree; or a function from such a tree to one; or None
Schedule = Callable[[jax.Array], Any]


def norms(name: str, tree: Any, groups: Groups) -> dict[str, jax.Array]:
    """Return the Euclidean norm of a pytree as `name`, and of each group of its arrays as `name/group`, in float32.

    Arrays of fewer bits are widened before they are squared; what is neither real nor complex counts for nothing.

    Args:
        name: what the keys begin with.
        tree: gradients, updates or parameters.
        groups: labels, as `optax.multi_transform` takes them; None: the top-level keys of the tree.

    >>> norms("grad_norm", {"encoder": jnp.array([3.0]), "decoder": jnp.array([4.0])}, None)["grad_norm"].item()
    5.0
    """
    squares: dict[str, list[jax.Array]] = {}
    for label, leaf in _labelled(tree, groups):
        array = jnp.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.inexact):
            wide = array.astype(jnp.promote_types(array.dtype, jnp.float32))
            squares.setdefault(label, []).append(jnp.sum(jnp.square(jnp.abs(wide))))
    total = [square for group in squares.values() for square in group]
    return {
        name: _root(total),
        **{f"{name}/{label}": _root(group) for label, group in squares.items() if label},
    }


def _labelled(tree: Any, groups: Groups) -> Iterator[tuple[str, Any]]:
    """Yield each leaf with its group's label; the label of a tree that is one leaf is empty."""
    if groups is None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            yield jax.tree_util.keystr(path[:1], simple=True), leaf
        return
    labels = groups(tree) if callable(groups) else groups
    try:
        parts = jax.tree.map(lambda label, part: (str(label), jax.tree.leaves(part)), labels, tree)
    except ValueError as error:
        raise NoetherError(
            "the labels in groups do not fit the parameters; give a label for each, or for each subtree, as"
            f" optax.multi_transform takes them: {error}"
        ) from error
    for label, leaves in jax.tree.leaves(parts, is_leaf=lambda node: isinstance(node, tuple) and len(node) == 2):
        for leaf in leaves:
            yield label, leaf


def _root(squares: list[jax.Array]) -> jax.Array:
    total = jnp.stack([square.astype(jnp.result_type(*squares)) for square in squares]).sum() if squares else 0.0
    return jnp.sqrt(total).astype(jnp.float32)


def learning_rates(before: Any, after: Any, schedule: Schedule | float | None) -> dict[str, jax.Array]:
    """Return the learning rate of an update as `learning_rate`, in float32; nothing if it is not to be had.

    Args:
        before: the optimizer's state before the update; its count goes into the schedule.
        after: and after it; it holds what `optax.inject_hyperparams` used. Where several optimizers have one, each key
            ends in a group of `optax.multi_transform`, the name in an `optax.named_chain`, or a number.
        schedule: the learning rate, or its schedule, where it is not injected.
    """
    if schedule is None:
        found = [
            (path, value)
            for path, value in optax.tree.get_all_with_path(after, "learning_rate")
            if getattr(path[-2], "name", None) == "hyperparams"
        ]
        names = ["/".join(str(entry.key) for entry in path[:-1] if hasattr(entry, "key")) for path, _ in found]
        if len(set(names) - {""}) < len(names):
            names = [str(at) for at in range(len(names))]
        keys = ["learning_rate"] if len(found) == 1 else [f"learning_rate/{name}" for name in names]
        return {key: jnp.asarray(value, jnp.float32) for key, (_, value) in zip(keys, found, strict=True)}
    if not callable(schedule):
        return {"learning_rate": jnp.float32(schedule)}
    counts = optax.tree.get_all_with_path(before, "count")
    if not counts:
        raise NoetherError(
            "record_optimizer got a schedule as learning_rate, and the optimizer's state has no count to give it; make the"
            " optimizer with that schedule, or with optax.inject_hyperparams"
        )
    scheduled = [value for path, value in counts if getattr(path[-1], "tuple_name", "") == "ScaleByScheduleState"]
    return {"learning_rate": jnp.asarray(schedule((scheduled or [counts[0][1]])[0]), jnp.float32)}
