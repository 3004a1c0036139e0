"""Find what a run carries in a pytree that holds it somewhere, such as an optimizer's state, and put another in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from noether_core.errors import NoetherError
from noether_jax.windows import Tracked

Path = tuple[int, ...]  # a child's number at each level
_DEEPEST = 100  # levels that are looked at
_HOLDERS = (tuple, Tracked)  # of a mapping's values, those in which one may be


def find_tracked(given: Any, path: Path) -> tuple[Tracked | None, Path]:
    """Return the first `Tracked` in what `run.step` got, and the way to it.

    None for update outputs, which are a record of arrays or a list of these, and for a pytree that holds none. `path`, where
    the last one was, is looked at first.
    """
    if given is None or isinstance(given, list):
        return None, path
    if isinstance(given, Mapping) and not any(issubclass(kind, _HOLDERS) for kind in {*map(type, given.values())}):
        return None, path
    if (tracked := _at(given, path)) is not None:
        return tracked, path
    found = _path(given)
    return (None, path) if found is None else (_at(given, found), found)


def _path(tree: Any, within: tuple[int, ...] = ()) -> Path | None:
    if isinstance(tree, Tracked):
        return ()
    if id(tree) in within or len(within) > _DEEPEST:  # a dict that holds itself
        return None
    for number, child in enumerate(_children(tree)):
        if (path := _path(child, (*within, id(tree)))) is not None:
            return (number, *path)
    return None


def _at(tree: Any, path: Path) -> Tracked | None:
    for number in path:
        children = _children(tree)
        if number >= len(children):
            return None
        tree = children[number]
    return tree if isinstance(tree, Tracked) else None


def _children(tree: Any) -> list[Any]:
    try:
        level = jax.tree_util.default_registry.flatten_one_level(tree)
    except ValueError:  # a dict whose keys cannot be sorted is no pytree
        return []
    return [] if level is None else list(level[0])


def put_tracked(tree: Any, new: Tracked) -> Any:
    """Return a pytree with another `Tracked` in the place of the one it has.

    Raises:
        NoetherError: if it has several.
    """
    count = sum(map(_is_tracked, jax.tree.leaves(tree, is_leaf=_is_tracked)))
    if count != 1:
        raise NoetherError(
            f"run.step got a tree with {count} states of tracked update outputs; expected one: record in one place of an"
            " optimizer, or make a run for each"
        )
    return jax.tree.map(lambda node: new if _is_tracked(node) else node, tree, is_leaf=_is_tracked)


def _is_tracked(node: Any) -> bool:
    return isinstance(node, Tracked)
