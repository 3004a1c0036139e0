"""Give each member of mapped axes a state of its own: a row of a leading axis, which lies where the member computes.

So a step exchanges nothing, whatever the number of devices; the rows are joined on the host when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from noether_core.errors import NoetherError, UpdateOutputError
from noether_jax.transfers import ours, to_device

AxisName = str | tuple[str, ...]
Tree = TypeVar("Tree")


@dataclass(frozen=True)
class Members:
    """Say over which mapped axes a state has a row for each member, and where these lie.

    Attributes:
        names: the axes.
        mesh: the mesh of `jax.shard_map` that has them; for `jax.vmap` how many members; None if that is not known.
    """

    names: tuple[str, ...]
    mesh: Mesh | int | None

    @property
    def spec(self) -> PartitionSpec:
        """Return the spec of every array of a state."""
        return PartitionSpec(self.names if len(self.names) > 1 else self.names[0])  # type: ignore[no-untyped-call]

    @property
    def _passing(self) -> str:
        """Return what to do to hand a state to the mapped function and back."""
        names = self.names if len(self.names) > 1 else repr(self.names[0])
        return (
            f"give shard_map the spec PartitionSpec({names}) for the state, in in_specs and out_specs (jax.vmap: in_axes=0 and"
            " out_axes=0)"
        )

    @property
    def count(self) -> int:
        """Return how many members there are.

        Raises:
            NoetherError: if that is not known, or inside of the mapped function, where there is one.
        """
        shown = self.names if len(self.names) > 1 else repr(self.names[0])
        if self._mapped() is not None:
            raise NoetherError(
                f"init was called inside of the function that is mapped over {shown}; call it outside, and"
                f" {self._passing}"
            )
        if self.mesh is None:
            raise NoetherError(
                f"axis_name={shown} came without mesh, and each member of the axis has a row of the state; give mesh=mesh too"
                f" (for jax.vmap, how many members), and {self._passing}"
            )
        return self._of(self.mesh)

    def _of(self, mesh: Mesh | int) -> int:
        return mesh if isinstance(mesh, int) else prod(mesh.shape[name] for name in self.names)

    def _mapped(self) -> int | None:
        """Return how many members the function has that JAX traces; None outside of one that is mapped over the axes."""
        try:
            return int(jax.lax.axis_size(self.names))
        except NameError:
            return None

    def spread(self, tree: Tree) -> Tree:
        """Return a pytree of NumPy arrays as JAX's, each the same in every member's row."""
        count = self.count
        if not isinstance(mesh := self.mesh, Mesh):
            repeated: Tree = jax.tree.map(lambda array: np.broadcast_to(array, (count, *np.shape(array))), tree)
            return to_device(repeated)  # type: ignore[no-any-return]

        kinds = {mesh.axis_types[mesh.axis_names.index(name)] for name in self.names}
        # what the next step gets, shard_map's results, have a spec of each of their axes if the mesh's are explicit
        others = (None,) if AxisType.Explicit in kinds else ()

        def placed(array: Any) -> jax.Array:
            rows = np.broadcast_to(array, (count, *np.shape(array)))
            spec = PartitionSpec(*self.spec, *others * np.ndim(array))  # type: ignore[no-untyped-call]
            sharding = NamedSharding(mesh, spec)
            return jax.make_array_from_callback(rows.shape, sharding, lambda at: rows[at])

        with ours():
            found: Tree = jax.tree.map(placed, tree)
        return found

    def is_row(self, leading: tuple[int, ...], method: str) -> bool:
        """Tell whether a member's state has its leading axis of one, as in `shard_map`, and not none, as in `vmap`.

        Raises:
            NoetherError: where the axes are not mapped over, for another number of members, or for the rows of several.
        """
        if (count := self._mapped()) is None:
            raise NoetherError(
                f"{method} was called outside of a function that is mapped over {self.names}, by jax.shard_map or jax.vmap, and"
                " the state has a row for each member of these axes; call it inside, or leave axis_name out"
            )
        if self.mesh is not None and count != (wanted := self._of(self.mesh)):
            raise NoetherError(
                f"{method} was called inside of a function that is mapped over {count} members of {self.names}, and the state"
                f" was made for {wanted}; make it with the mesh of shard_map (jax.vmap: mesh={count}), and {self._passing}"
            )
        if leading not in ((), (1,)):
            raise NoetherError(
                f"{method} got a state with the leading axes {leading} inside of the function that is mapped over {self.names};"
                f" expected the member's own row: {self._passing}"
            )
        return bool(leading)

    def check_outside(self, leading: tuple[int, ...], method: str) -> None:
        """Raise `NoetherError` unless a state's last leading axis has a row for each member."""
        count = None if self.mesh is None else self.count
        if not leading or (count is not None and leading[-1] != count):
            raise NoetherError(
                f"{method} got a state with the leading axes {leading}; expected a row for each of the"
                f" {'' if count is None else count} members of {self.names}: {self._passing}. From a checkpoint that another"
                " number of members made, load the run's state_dict instead"
            )

    def check_covers(self, values: Mapping[str, jax.Array]) -> None:
        """Raise `UpdateOutputError` for a value that differs along a mapped axis that is not ours."""
        for key, value in values.items():
            kind = getattr(jax.typeof(value), "manual_axis_type", None)
            if others := sorted({*getattr(kind, "varying", ())} - {*self.names}):
                raise UpdateOutputError(
                    f"update output {key!r} varies over the mapped axes {others} too, and axis_name has {self.names} only, so"
                    f" that one value of many would count; give axis_name={(*self.names, *others)} and its spec, or make the"
                    f" value the same along {others}, as jax.lax.pmean does"
                )


def members_of(axis_name: AxisName | None, mesh: Mesh | int | None) -> Members | None:
    """Return the members that arguments name; None without `axis_name`. Without `mesh`, that of `jax.set_mesh` is taken.

    Raises:
        NoetherError: for arguments that fit neither JAX nor each other.
    """
    if axis_name is None:
        if mesh is not None:
            raise NoetherError(
                f"got mesh={mesh} without axis_name; say which of its axes the state has a row for, or leave mesh out"
            )
        return None
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    if (
        not isinstance(names, tuple)
        or not names
        or not all(isinstance(name, str) for name in names)
        or len({*names}) < len(names)
    ):
        raise NoetherError(
            f"got axis_name={axis_name!r}; expected the name of a mapped axis, or a tuple of such, each once"
        )
    if mesh is None:
        mesh = _current(names)
    if isinstance(mesh, bool) or not isinstance(mesh, Mesh | int | None) or (isinstance(mesh, int) and mesh < 1):
        raise NoetherError(
            f"got mesh={mesh!r}; expected the jax.sharding.Mesh of shard_map, or how many members jax.vmap has"
        )
    if isinstance(mesh, Mesh) and (absent := [name for name in names if name not in mesh.axis_names]):
        raise NoetherError(
            f"axis_name has {absent}, and the mesh the axes {list(mesh.axis_names)}; name axes of the mesh"
        )
    return Members(names, mesh)


def _current(names: tuple[str, ...]) -> Mesh | None:
    """Return the mesh of `jax.set_mesh`, if it has axes of these names."""
    try:
        mesh = jax.sharding.get_mesh()
    except ValueError:  # while JAX traces there is none to be had
        return None
    return mesh if isinstance(mesh, Mesh) and set(names) <= set(mesh.axis_names) else None


def own_row(tree: Tree) -> Tree:
    """Return a member's state without its leading axis of one."""
    found: Tree = jax.tree.map(lambda array: jax.lax.squeeze(array, (0,)), tree)
    return found


def as_row(tree: Tree) -> Tree:
    """Return a member's state with its leading axis of one."""
    found: Tree = jax.tree.map(lambda array: jax.lax.expand_dims(array, (0,)), tree)
    return found
