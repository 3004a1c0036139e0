"""Make of a compiled training step one that can be replayed from what was recorded, for `transplant`.

def step_of(batch, params, opt_state, due, grads, **_):
    _, _, outputs = train_step(params, opt_state, batch["images"], batch["labels"], due, grads)
    return outputs                                  # with what `probe(due, …)` returned

step = replayable(step_of, params, optimizer.init(params))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.parity.between_runs.replayable import WHOLE, ReplayError, arrays_of, check_names, micro_batches
from noether_core.parity.between_runs.step import Array, Arrays, Inputs, Step, as_step
from noether_core.probes.fingerprint import holds_numbers
from noether_core.probes.naming import Names, torch_names
from noether_core.probes.probed import Due, Probed
from noether_jax.probes import stage_values

Load = Callable[[Any, Arrays], Any]


class TrainStep(Protocol):
    """Compute a step, and return what `probe` returned in it: alone, or anywhere in a tree of what else is returned.

    Args:
        batch: arrays by the names under which they were recorded; of an update of several accumulation steps a list of such,
            for which a list comes back.
        params, opt_state, buffers: trees like those that `replayable` was given.
        update: which one, counted from 1.
        due: what is to be probed, for `probe`.
        grads: None; or a tree of gradients that take the place of the step's own.
    """

    def __call__(
        self, *, batch: Any, params: Any, opt_state: Any, buffers: Any, update: int, due: Due, grads: Any
    ) -> Any:
        """Return what was probed."""


def replayable(
    train_step: TrainStep,
    params: Any,
    opt_state: Any,
    buffers: Any = None,
    *,
    names: Names = torch_names,
    images: bool = False,
    load: Load | None = None,
) -> Step:
    """Return a step for `transplant`: it puts what was recorded into trees like these, and lets a training's step take them.

    Where an array of a tree went under its recorded name is found by running `names` over numbered elements; so any function
    serves that renames, transposes, splits or joins.

    Args:
        train_step: the training's own step, which probes; called with keywords.
        params: as the training starts; an update of which a parameter was not recorded takes it from here.
        opt_state: fresh, of the optimizer. Every `count` in it becomes the recorded one.
        buffers: fresh running statistics, as they are given to `probe`.
        names: as they are given to `probe`.
        images: likewise.
        load: puts arrays by recorded name into a tree like `params`, where `names` computes more than an order, such as
            `lambda tree, arrays: noether_jax.names.load(tree, arrays, matching)`.

    Raises:
        ReplayError: from the step, for names that the trees do not have, and for values that cannot be put there.

    >>> def train_step(*, batch, params, grads, due, **_):
    ...     loss, own = jax.value_and_grad(lambda params: (batch["x"] @ params["kernel"]).sum())(params)
    ...     grads = own if grads is None else grads
    ...     updates = jax.tree.map(lambda grad: -0.5 * grad, grads)
    ...     return probe(due, losses=loss, grads=grads, updates=updates)
    >>> from noether_jax import probe
    >>> step = replayable(train_step, {"kernel": jnp.zeros((2, 1))}, ())
    >>> found = step({"x": np.ones((3, 2), "float32")}, {"weight": np.ones((1, 2), "float32")}, {}, {}, 1)
    >>> {key: array.tolist() for key, array in found.items()}
    {'loss/total': 6.0, 'grad/weight': [[3.0, 3.0]], 'update/weight': [[-1.5, -1.5]]}
    """
    return as_step(_Replayable(train_step, (params, opt_state, buffers), names, images, load).compute)


class _Replayable:
    """Replay steps; see `replayable`."""

    def __init__(
        self, train_step: TrainStep, trees: tuple[Any, Any, Any], names: Names, images: bool, load: Load | None
    ) -> None:
        self._train_step, self._images, self._load = train_step, images, load
        params, opt_state, buffers = trees
        self._params = _Places(params, lambda tree: stage_values(params=tree, names=names))
        self._state = _Places(opt_state, lambda tree: stage_values(params=params, opt_state=tree, names=names))
        self._buffers = _Places(buffers, lambda tree: stage_values(buffers=tree, names=names))

    def compute(self, given: Inputs) -> dict[str, Array]:
        """Return what the step computes."""
        batches = [
            {name: self._on_device(array) for name, array in each.items()} for each in micro_batches(given.batch)
        ]
        check_names(given.buffers, self._buffers.of, "buffers", "the tree of buffers")
        # some may be of another optimizer
        known = {name: array for name, array in given.opt_state.items() if name in self._state.of}
        returned = self._train_step(
            batch=batches if len(batches) > 1 else batches[0],
            params=self._filled(given.params, "parameters"),
            opt_state=self._state.filled(known, count=given.opt_state.get("count")),
            buffers=self._buffers.filled(given.buffers),
            update=given.update,
            due=WHOLE,
            grads=None if given.grads is None else self._filled(given.grads, "gradients of", is_blank=True),
        )
        steps = [_probed(each) for each in (returned if len(batches) > 1 else [returned])]
        computed = arrays_of(steps, np.asarray)
        return {key: array for key, array in computed.items() if not key.startswith(("data/", "param/"))}

    def _filled(self, arrays: Arrays, what: str, is_blank: bool = False) -> Any:
        if self._load is not None and not is_blank:
            return self._load(self._params.tree, arrays)
        check_names(arrays, self._params.of, what, "the tree of parameters")
        return self._params.filled(arrays, is_blank)

    def _on_device(self, array: Array) -> jax.Array:
        return jnp.asarray(np.moveaxis(array, 1, -1) if self._images and array.ndim in (4, 5) else array)


class _Places:
    """Say under which names a tree's elements are recorded, and where.

    Args:
        tree: the tree.
        recorded: gives what is recorded of such a tree, by key.

    Attributes:
        tree: the tree.
        of: by recorded name, each element's number among all of the tree's, counted from 1; 0 for what is not of the tree.
    """

    def __init__(self, tree: Any, recorded: Callable[[Any], Mapping[str, Any]]) -> None:
        self.tree = tree
        paths, self._form = jax.tree_util.tree_flatten_with_path(tree)
        self._leaves = [leaf for _, leaf in paths]
        self._is_count = [jax.tree_util.keystr(path[-1:], simple=True) == "count" for path, _ in paths]
        sizes = [leaf.size if hasattr(leaf, "dtype") and holds_numbers(leaf.dtype) else 0 for leaf in self._leaves]
        self._ends = np.cumsum(sizes, dtype=np.int64)
        dtype = np.int32 if sum(sizes) < 2**31 else np.int64
        numbered = [
            np.arange(end - size + 1, end + 1, dtype=dtype).reshape(leaf.shape) if size else leaf
            for leaf, size, end in zip(self._leaves, sizes, self._ends, strict=True)
        ]
        found = recorded(jax.tree.unflatten(self._form, numbered))
        prefixes = ("param/", "opt/")
        self.of = {key.partition("/")[2]: np.asarray(array) for key, array in found.items() if key.startswith(prefixes)}

    def filled(self, arrays: Arrays, is_blank: bool = False, count: Any = None) -> Any:
        """Return a tree with what was recorded in its places.

        Args:
            arrays: by recorded name.
            is_blank: whether what is not given is zero, not as it was; then what is of no element of the tree is left out,
                such as the gradient of a second bias that is one with the first in JAX.
            count: what every `count` is to be.
        """
        flat = [np.zeros(leaf.shape, leaf.dtype) if is_blank else np.array(leaf) for leaf in self._leaves]
        flat = [each.reshape(-1) for each in flat]
        for name, array in arrays.items():
            for leaf, inside, outside in self._pieces(name, np.asarray(array)):
                flat[leaf][inside] = outside
        for name, array in arrays.items():
            self._check(name, np.asarray(array), flat, is_blank)
        for at, is_count in enumerate(self._is_count):
            if is_count and count is not None and flat[at].size == 1:
                flat[at][:] = count
        shaped = [jnp.asarray(each.reshape(leaf.shape)) for each, leaf in zip(flat, self._leaves, strict=True)]
        return jax.tree.unflatten(self._form, shaped)

    def _pieces(self, name: str, array: Array) -> Iterator[tuple[int, Array, Array]]:
        """Yield which elements of which leaf are recorded in an array, and with which values."""
        numbers = self.of[name]
        if array.shape != numbers.shape:
            raise ReplayError(
                f"the step was given {name!r} of shape {array.shape}, and its tree has {numbers.shape}: were arrays kept"
                " whole? Raise `array_limit` of ProbeCallback"
            )
        leaves = np.where(numbers > 0, np.searchsorted(self._ends, numbers), -1)
        for leaf in np.unique(leaves[leaves >= 0]):
            chosen = leaves == leaf
            begin = self._ends[leaf] - self._leaves[leaf].size
            yield int(leaf), numbers[chosen] - begin - 1, array[chosen]

    def _check(self, name: str, array: Array, flat: Sequence[Array], is_blank: bool) -> None:
        """Raise `ReplayError` if the tree could not take the values of an array."""
        is_put = is_blank or not np.any(array[self.of[name] == 0])
        for leaf, inside, outside in self._pieces(name, array):
            taken = flat[leaf][inside]
            is_put &= np.array_equal(taken, outside.astype(taken.dtype), equal_nan=taken.dtype.kind in "fc")
        if not is_put:
            raise ReplayError(
                f"the values of {name!r} do not go back into the tree: `names` makes them of more than an order of its"
                " elements. Give replayable(…, load=function), which puts arrays by recorded name into a tree"
            )


def _probed(returned: Any) -> list[Probed]:
    """Return what was probed in what a step returned."""
    leaves = jax.tree.leaves(returned, is_leaf=lambda each: isinstance(each, Probed))
    return [leaf for leaf in leaves if isinstance(leaf, Probed)]
