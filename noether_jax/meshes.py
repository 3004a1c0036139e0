"""Compute with arrays of any meshes together, whatever their shardings: the one place that knows of axis types.

Under explicit axes, the default of `jax.make_mesh`, an array's sharding is part of its type, and JAX refuses to reshape, to
stack or to merge what differs in it; and what differs in its mesh it refuses in any case. So our functions compute with
automatic axes: what comes in gets the type that it would have there, and what goes out the type that it had. Nothing is moved
for it: an array is reduced where its shards are.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.custom_batching import custom_vmap
from jax.sharding import (
    AbstractMesh,
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    get_abstract_mesh,
    reshard,
    use_abstract_mesh,
)

from noether_jax.transfers import ours, to_device

Tree = TypeVar("Tree")
MOST_STACKED = 2**14  # elements of an array; to copy larger ones costs more than to read each by itself


class Together(NamedTuple):
    """Give arrays the types with which they can be computed with together, and results those of what came.

    Attributes:
        mesh: has automatic and manual axes alone; None: nothing is to be done.
        gathers: whether small results are made whole on every device.
    """

    mesh: AbstractMesh | None
    gathers: bool = True

    def taken(self, tree: Tree) -> Tree:
        """Return a pytree that can be computed with, within `together`."""
        if (mesh := self.mesh) is None:
            return tree
        return jax.tree.map(lambda value: _taken(mesh, value), tree)  # type: ignore[no-any-return]

    def given(self, tree: Tree, like: Any = None) -> Tree:
        """Return what was computed, with the types of another pytree; to be called after `together`."""
        if (mesh := self.mesh) is None:
            return tree
        likes = tree if like is None else like
        most = self._most_whole
        return jax.tree.map(lambda value, old: _given(mesh, value, old, most), tree, likes)  # type: ignore[no-any-return]

    @property
    def _most_whole(self) -> int:
        return MOST_STACKED if self.gathers else 0


@contextmanager
def together(*trees: Any, gathers: bool = True) -> Iterator[Together]:
    """Let arrays of pytrees like these be computed with together, inside of compiled functions and outside.

    Args:
        *trees: the pytrees.
        gathers: whether small results are made whole on every device.
    """
    here = get_abstract_mesh()
    found = [here, *(mesh_of(leaf) for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array))]
    meshes = dict.fromkeys(mesh for mesh in found if mesh != _NONE)
    if len(meshes) <= 1 and not any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        yield Together(None)
        return
    mesh = _retyped(next(iter(meshes)), AxisType.Explicit, AxisType.Auto)
    with use_abstract_mesh(mesh):
        yield Together(mesh, gathers)


_NONE = AbstractMesh((), ())
_NOTHING = nullcontext()


def _taken(mesh: AbstractMesh, value: Any) -> Any:
    if not isinstance(value, jax.Array) or mesh_of(value) in (_NONE, mesh):
        return value
    return _typed(reduced(value), mesh)


def _given(mesh: AbstractMesh, value: Any, like: Any, most_whole: int) -> Any:
    if not isinstance(value, jax.Array) or mesh_of(value) != mesh:
        return value
    wanted: AbstractMesh = get_abstract_mesh()
    spec: tuple[Any, ...] = ()
    if isinstance(like, jax.Array) and mesh_of(like) != _NONE:
        wanted, spec = mesh_of(like), _partitions(jax.typeof(like).sharding.spec)
    whole = _whole(value) if value.size <= most_whole else value
    return _typed(whole, mesh if wanted == _NONE else wanted, spec)


def mesh_of(value: jax.Array) -> AbstractMesh:
    """Return the mesh that is part of an array's type; an empty one for what lies on one device."""
    mesh: AbstractMesh = jax.typeof(value).sharding.mesh
    return mesh


def reduced(value: jax.Array) -> jax.Array:
    """Return an array with the sums made that its sharding leaves open, `PartitionSpec(unreduced=...)`."""
    spec = jax.typeof(value).sharding.spec
    return _typed(value, mesh_of(value), _partitions(spec)) if spec.unreduced else value


def no_mesh() -> AbstractContextManager[Any]:
    """Let arrays of any devices go into a compiled call of our own, whatever `jax.set_mesh` the user has called."""
    return _NOTHING if get_abstract_mesh().empty else jax.set_mesh(None)


def _whole(value: jax.Array) -> jax.Array:
    """Return an array that is whole on every device, but for manual axes."""
    return _typed(value, _retyped(mesh_of(value), AxisType.Auto, AxisType.Explicit))


def auto_axes(value: jax.Array) -> dict[str, int]:
    """Return the sizes of the axes along which XLA decides how an array is sharded; none where it does not decide."""
    mesh = mesh_of(value)
    if AxisType.Explicit in mesh.axis_types:
        return {}
    sizes = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
    return {name: size for name, size, kind in sizes if kind is AxisType.Auto}


def laid_along(value: jax.Array, axes: Sequence[str]) -> jax.Array:
    """Return an array whose rows are shared out along axes of XLA's; without axes, one that each device has whole.

    Under `jax.vmap` the members may be shared out along these axes already: then nothing is, but by XLA.
    """
    if not auto_axes(value):
        return value
    sharding = NamedSharding(mesh_of(value), PartitionSpec(tuple(axes)))  # type: ignore[no-untyped-call]

    def constrained(value: jax.Array) -> jax.Array:
        return jax.lax.with_sharding_constraint(value, sharding)  # type: ignore[no-any-return,no-untyped-call]

    if not axes:
        return constrained(value)
    by_member = custom_vmap(constrained)
    by_member.def_vmap(lambda _, is_batched, values: (values, is_batched[0]))
    return by_member(value)  # type: ignore[no-any-return]


def _partitions(spec: PartitionSpec) -> tuple[Any, ...]:
    """Return by which mesh axes each axis of an array is split: before JAX had a name for that, a spec was the tuple itself."""
    partitions: tuple[Any, ...] = spec.partitions if hasattr(spec, "partitions") else tuple(spec)
    return partitions


def _typed(value: jax.Array, mesh: AbstractMesh, spec: tuple[Any, ...] = ()) -> jax.Array:
    """Return an array as one of a mesh; along its explicit axes sharded as is said, along the automatic ones as it was."""
    sharding = NamedSharding(mesh, PartitionSpec(*spec))  # type: ignore[no-untyped-call]
    typed: jax.Array = reshard(value, sharding)  # type: ignore[no-untyped-call]
    return typed


def _retyped(mesh: AbstractMesh, old: AxisType, new: AxisType) -> AbstractMesh:
    of_old = [name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind is old]
    retyped: AbstractMesh = mesh.update_axis_types(dict.fromkeys(of_old, new))
    return retyped


def place_of(value: jax.Array) -> Hashable:
    """Return the devices of an array, in the order of its mesh if it has one: only what shares them is computed together."""
    sharding = value.sharding
    if isinstance(sharding, NamedSharding) and isinstance(mesh := sharding.mesh, Mesh) and mesh.size > 1:
        return tuple(mesh.devices.flat)
    return frozenset(value.devices())


def beside(value: Any, other: jax.Array) -> jax.Array:
    """Return a value, of JAX or of NumPy, where another is."""
    if not isinstance(value, jax.Array):
        value = to_device(np.asarray(value))
    if place_of(value) == place_of(other):
        return value  # type: ignore[no-any-return]
    sharding = other.sharding
    if isinstance(sharding, NamedSharding) and (value.shape != other.shape or sharding.spec.unreduced):
        sharding = NamedSharding(sharding.mesh, PartitionSpec())  # type: ignore[no-untyped-call]
    with ours(), no_mesh():
        moved: jax.Array = jax.device_put(jax.jit(reduced)(value), sharding)
        return moved


def laid_like(value: jax.Array, other: Any) -> jax.Array:
    """Return an array that XLA laid over devices as another lies over these: `jax.pmap` takes no other one."""
    sharding = getattr(other, "sharding", value.sharding)
    if sharding.device_set != value.sharding.device_set or sharding.is_equivalent_to(value.sharding, value.ndim):
        return value
    moved: jax.Array = jax.device_put(value, sharding)
    return moved


def brought_together(tree: Tree) -> Tree | None:
    """Return a pytree with what is bound to a device on those of the first array of a mesh; None if none has one or is traced.

    Outside of compiled functions JAX computes with arrays of several meshes in a compiled call alone.
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    like = next((array for array in arrays if mesh_of(array) != _NONE), None)
    if like is None or any(isinstance(array, jax.core.Tracer) for array in arrays):
        return None
    return jax.tree.map(  # type: ignore[no-any-return]
        lambda leaf: beside(leaf, like) if isinstance(leaf, jax.Array) and leaf.committed else leaf, tree
    )
