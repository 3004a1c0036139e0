"""Track what Flax models keep aside, of NNX and of Linen, and track update outputs as an NNX metric.

logits, intermediates = nnx.capture(model, nnx.Intermediate)(images)                    # in NNX
run.step({"loss": loss, **intermediate_outputs(intermediates)})

logits, variables = model.apply({"params": params}, images, mutable=["intermediates"])  # in Linen
run.step({"loss": loss, **intermediate_outputs(variables["intermediates"])})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.dependencies import needing
from noether_core.errors import NoetherError, UpdateOutputError, listing, suggest
from noether_core.select import select
from noether_jax.output_tracker import OutputTracker
from noether_jax.tracker_state import OutputTrackerState
from noether_jax.transfers import to_device

with needing("noether_jax.flax", "flax"):
    from flax import nnx

Statistic = Callable[[jax.Array], jax.Array]


def intermediate_outputs(
    intermediates: Mapping[str, Any],
    patterns: Sequence[str] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
) -> dict[str, jax.Array]:
    """Return a forward pass's intermediates as update outputs. Pure: for use inside of `jit` and `nnx.jit`, or outside.

    A key is the names of the modules and of the value, joined by `/`: `blocks/0/attention/weights`. What a module's
    `__call__` returned has the module's name: `blocks/0/attention`. Where a value was sown several times in the pass, or is a
    tuple, its parts have their index at the end: `weights/0` and `weights/1`.

    Args:
        intermediates: for NNX, the State that `nnx.capture` returned beside the result, with `method_outputs` or without, or
            that `nnx.pop` returned; for Linen, the collection that `apply` returned with `mutable=["intermediates"]` or with
            `capture_intermediates`; or, of either, gradients with respect to what `perturb` adds.
        patterns: literal parts of keys, to return the ones that contain any of these; None: all.
        statistics: functions from an array to an array, by the names to track them under, as in
            `blocks/0/attention/weights/max`; None: the intermediates themselves.

    Raises:
        NoetherError: if a pattern is in no key.
        UpdateOutputError: if two intermediates have one key.

    >>> import jax.numpy as jnp
    >>> model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu)
    >>> forward = nnx.capture(model, nnx.Intermediate, method_outputs=nnx.Intermediate)
    >>> output, intermediates = forward(jnp.zeros((1, 2)))
    >>> intermediate_outputs(intermediates, ["layers/"], {"max": jnp.max})
    {'layers/0/max': Array(0., dtype=float32)}
    """
    if not isinstance(intermediates, Mapping):
        raise NoetherError(
            f"intermediate_outputs got {type(intermediates).__name__}; expected the State that nnx.capture returned beside the"
            " result, or the 'intermediates' of the variables that Linen's apply returned beside it"
        )
    values = _by_key(intermediates)
    keys = tuple(values) if patterns is None else _matching(patterns, tuple(values))
    chosen = {key: values[key] for key in keys}
    return chosen if statistics is None else _read(chosen, statistics)


def _read(values: Mapping[str, Any], statistics: Mapping[str, Statistic]) -> dict[str, jax.Array]:
    found: dict[str, jax.Array] = {}
    for key, value in values.items():
        for name, statistic in statistics.items():
            if f"{key}/{name}" in found:
                raise UpdateOutputError(f"two statistics have the key {f'{key}/{name}'!r}; rename one of them")
            found[f"{key}/{name}"] = statistic(value)
    return found


def _by_key(intermediates: Mapping[str, Any]) -> dict[str, Any]:
    def value_of(node: Any) -> Any:
        value = node.get_value() if isinstance(node, nnx.Variable) else node
        return value[0] if type(value) is tuple and len(value) == 1 else value

    tree = jax.tree.map(value_of, intermediates, is_leaf=lambda node: isinstance(node, nnx.Variable | tuple))
    values: dict[str, Any] = {}
    for path, value in jax.tree_util.tree_flatten_with_path(tree)[0]:
        key = jax.tree_util.keystr(path, simple=True, separator="/").replace("/__call__", "")
        if key in values:
            raise UpdateOutputError(f"two intermediates have the key {key!r}; rename one of them, or its module")
        values[key] = value
    return values


def _matching(patterns: Sequence[str], keys: tuple[str, ...]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise NoetherError(f"intermediate_outputs got the string {patterns!r}; write a list: [{patterns!r}]")
    selection = select((), patterns, keys)
    for pattern, matched in selection.matches.items():
        if not matched:
            raise NoetherError(
                f"pattern {pattern!r} is in no intermediate's key; there are {listing(keys)}.{suggest(pattern, keys)}"
            )
    return selection.tracked


class TrackOutputs(nnx.Metric):
    """Reduce update outputs as an NNX metric, alone or in an `nnx.MultiMetric`: in the bits that a `Run` logs.

    `update` and `reset` may be called inside of `nnx.jit`; `compute` is for outside. What it returns can be logged, as in
    `run.log_writer.add_scalar`, or be an update output itself: `run.step({**outputs, "test": metric.compute()})`.

    Args:
        config: a `TrackAdditionalOutputsCallbackConfig`, or its fields as a dict. Its interval is not looked at: it lasts
            from one `reset` to the next.
        example: what `update` will get, with every key that ever comes: arrays, or their `jax.ShapeDtypeStruct`s.

    Attributes:
        state: the variable that holds it all, a `OutputTrackerState`, whose structure never changes.

    Raises:
        NoetherError: if the config asks for what cannot be done inside of a compiled function.
        UpdateOutputError, MissingKeyError: also from `update`, for outputs that cannot be tracked.

    >>> import jax.numpy as jnp
    >>> metric = TrackOutputs({"every_n_updates": 1, "keys": ["loss"]}, {"loss": jnp.float32(0)})
    >>> for loss in (1.0, 2.0):
    ...     metric.update(loss=jnp.float32(loss))
    >>> metric.compute()
    {'loss': array(1.5, dtype=float32)}
    """

    def __init__(
        self, config: TrackAdditionalOutputsCallbackConfig | Mapping[str, Any], example: Mapping[str, Any]
    ) -> None:
        self._tracker = OutputTracker(config)
        self.state = nnx.metrics.MetricState(self._tracker.init(example))

    def update(self, /, **outputs: Any) -> None:
        """Merge one step's outputs in, nested dicts allowed; those that the config doesn't name are left alone."""
        self.state.set_value(self._tracker.update(self._held(), outputs))

    def compute(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return each key's finished values since the last `reset`, as `OutputTracker.compute` does. This waits for the device.

        Raises:
            NoetherError: inside of a function that JAX traces, where there are no values yet.
        """
        held = self._held()
        if isinstance(held.step, jax.core.Tracer):
            raise NoetherError(
                "TrackOutputs.compute was called while JAX traced a function, where it has no values yet; call update inside"
                " of nnx.jit, and compute outside"
            )
        return self._tracker.compute(held)

    def reset(self) -> None:
        """Forget all outputs."""
        self.state.set_value(to_device(self._tracker.blank(self._held().slots)))

    def _held(self) -> OutputTrackerState:
        state: OutputTrackerState = self.state.get_value()
        return state
