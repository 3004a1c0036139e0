"""Measure one call of an optimizer: the norms of gradients, updates and parameters, by groups, and the learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped] # it ships without types

from noether_core.errors import NoetherError
from noether_jax.meshes import reduced, together

Groups = Any  # a pytree of labels, a prefix of the parameters' tree; or a function from such a tree to one; or None
Schedule = Callable[[jax.Array], Any]


def norms(name: str, tree: Any, groups: Groups) -> dict[str, jax.Array]:
    """Return the Euclidean norm of a pytree as `name`, and of each group of its arrays as `name/group`, in float32.

    Arrays of fewer bits are widened before they are squared; what is neither real nor complex counts for nothing. The groups
    are labels, as `optax.multi_transform` takes them; None: the top-level keys of the tree.

    >>> norms("grad_norm", {"encoder": jnp.array([3.0]), "decoder": jnp.array([4.0])}, None)["grad_norm"].item()
    5.0
    """
    squares: dict[str | None, list[jax.Array]] = {}
    for label, leaf in _labelled(tree, groups):
        array = jnp.asarray(leaf)
        if jnp.issubdtype(array.dtype, jnp.inexact):
            size = jnp.abs(reduced(array))
            wide = size if size.dtype == jnp.float64 else size.astype(jnp.float32)
            squares.setdefault(label, []).append(jnp.sum(jnp.square(wide)))
    total = [square for group in squares.values() for square in group]
    return {
        name: _root(total),
        **{f"{name}/{label}": _root(group) for label, group in squares.items() if label is not None},
    }


def _labelled(tree: Any, groups: Groups) -> list[tuple[str | None, Any]]:
    """Return each leaf with its group's label; a tree that is one leaf has none.

    Raises:
        NoetherError: if the labels do not fit the tree, or two of them are written alike.
    """
    if groups is None:
        paths = jax.tree_util.tree_leaves_with_path(tree)
        return [(jax.tree_util.keystr(path[:1], simple=True) if path else None, leaf) for path, leaf in paths]
    labels = groups(tree) if callable(groups) else groups
    written: dict[str, Any] = {}
    for label in jax.tree.leaves(labels):
        if type(other := written.setdefault(str(label), label)) is not type(label) or other != label:
            raise NoetherError(
                f"groups has the labels {other!r} and {label!r}, which are written alike; rename one of them"
            )
    found: list[tuple[str | None, Any]] = []
    try:
        jax.tree.map(
            lambda label, part: found.extend((str(label), leaf) for leaf in jax.tree.leaves(part)), labels, tree
        )
    except ValueError as error:
        raise NoetherError(
            "the labels in groups do not fit the parameters; give a label for each, or for each subtree, as"
            f" optax.multi_transform takes them: {error}"
        ) from error
    return found


def _root(squares: list[jax.Array]) -> jax.Array:
    if not squares:
        return jnp.zeros((), jnp.float32)
    widest = np.result_type(*(square.dtype for square in squares))
    with together(squares) as shared:
        stack = jnp.stack([square.astype(widest) for square in shared.taken(squares)])
        root = jnp.sqrt(stack.sum()).astype(jnp.float32)
    return shared.given(root)


def learning_rates(before: Any, after: Any, schedule: Schedule | float | None) -> dict[str, jax.Array]:
    """Return the learning rate of an update as `learning_rate`, in float32; nothing if it is not to be had.

    Args:
        before: the optimizer's state before the update; its count goes into the schedule.
        after: and after it; it holds what `optax.inject_hyperparams` or a line search used. Where several optimizers have
            one, each key ends in a group of `optax.multi_transform`, the name in an `optax.named_chain`, or a number.
        schedule: the learning rate, or its schedule, where the state does not hold it.
    """
    if schedule is None:
        found = [
            (path, value)
            for path, value in optax.tree.get_all_with_path(after, "learning_rate")
            if [getattr(entry, "name", None) for entry in path[-2:-1]] != ["hyperparams_states"]
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
