"""Track update outputs, and what only the optimizer knows, inside of an optax optimizer.

with Run("runs/mine", callbacks="callbacks.yaml") as run:
    optimizer = optax.chain(record_outputs(run, example), optax.adam(1e-3))
    opt_state = optimizer.init(params)
    for batch in batches:
        params, opt_state = train_step(params, opt_state, batch)
        # jitted; calls optimizer.update(grads, opt_state, params, update_outputs=outputs)
        opt_state = run.step(opt_state)

The interval under way is part of the optimizer's state: whatever carries that (`jit`, `scan`, a checkpoint) carries it too.
The update stays pure: nothing is emitted from inside of it, but by `run.step`. Of an `nnx.Optimizer`:

    nnx.update(optimizer.opt_state, nnx.state(run.step(nnx.as_pure(optimizer.opt_state))))

What both transformations take:

    tracking: a run, whose callbacks track; the state goes to `run.step`. Or a config, for a state of your own: give
        `optax.tree.get(opt_state, "recorded")` to the functions of `track_outputs(config)`; each call is an update.
    example: update outputs, or their `jax.ShapeDtypeStruct`s, with every key that ever comes.
    steps_per_call, axis_name, mesh: as for `Run.init`; `record_specs` gives the specs for `shard_map`.

They raise `NoetherError` for a config that asks for what cannot be done inside of a compiled function, and `init` and `update`
`UpdateOutputError` or `MissingKeyError` for outputs that cannot be tracked.

To go on from a checkpoint of the state, saved after a whole update, make the run with `start={"update": n}`. Or load the run's
own `state_dict`, which brings the interval under way, and put a fresh one into the optimizer's state:
`with_records(restored, optimizer.init(params))`. That, and `without_records`, also take the state to another config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, PartitionSpec

from noether_core.dependencies import needing
from noether_core.errors import NoetherError, UpdateOutputError, listing
from noether_core.select import flat_outputs
from noether_jax.members import AxisName
from noether_jax.optax.recorder import Recorder, RecordState, Tracking

with needing("noether_jax.optax", "optax"):
    import optax  # type: ignore[import-untyped] # it ships without types

    from noether_jax.optax.norms import Groups, Schedule, learning_rates, norms


def record_outputs(
    tracking: Tracking,
    example: Mapping[str, Any],
    *,
    steps_per_call: int = 1,
    axis_name: AxisName | None = None,
    mesh: Mesh | int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return a transformation that tracks the `update_outputs` given to `update`, and leaves the updates alone.

    Before `optax.MultiSteps`, as in `optax.chain(record_outputs(run, example), multi_steps.gradient_transformation())`, it
    sees every micro-batch: give the run `accumulation_steps=k`, so that each has its update and accumulation step. Inside of
    `MultiSteps` it sees the last micro-batch of each update and none of the others: call `run.step` once an update then, and
    leave the run's `accumulation_steps` at 1, as also where `k` varies or `should_skip_update_fn` refuses updates.

    Raises:
        NoetherError: from `update`, if it got no `update_outputs`: flax's `TrainState.apply_gradients`, for one, passes none
            on. For the rest, and the arguments, see the module.

    >>> import jax.numpy as jnp
    >>> from noether_jax import track_outputs
    >>> config = {"every_n_updates": 2, "keys": ["loss"]}
    >>> optimizer = optax.chain(record_outputs(config, {"loss": jnp.float32(0)}), optax.sgd(0.1))
    >>> state = optimizer.init(jnp.zeros(2))
    >>> for loss in (1.0, 2.0):
    ...     _, state = optimizer.update(jnp.ones(2), state, update_outputs={"loss": jnp.float32(loss)})
    >>> track_outputs(config).compute(optax.tree.get(state, "recorded"))
    {'loss': array(1.5, dtype=float32)}
    """
    recorder = Recorder(tracking, steps_per_call, axis_name, mesh)

    def update(updates: Any, state: RecordState, _: Any = None, *, update_outputs: Any = None, **extra: Any) -> Any:
        if update_outputs is None:
            raise NoetherError(
                "record_outputs got no update outputs; call optimizer.update(updates, state, params, update_outputs=...)"
                " with the dict that the step computed"
            )
        return updates, recorder.update(state, update_outputs)

    return optax.GradientTransformationExtraArgs(lambda _: recorder.init(example), update)


def record_optimizer(
    optimizer: optax.GradientTransformation,
    tracking: Tracking,
    example: Mapping[str, Any] | None = None,
    *,
    groups: Groups = None,
    learning_rate: Schedule | float | None = None,
    steps_per_call: int = 1,
    axis_name: AxisName | None = None,
    mesh: Mesh | int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Wrap a whole optimizer, and track what it sees and does beside the `update_outputs` given to `update`, if any.

    The keys, all float32: `grad_norm`, of what comes in; `update_norm`, of what goes out; `param_norm`, of the parameters
    before the update; each also by group, as in `grad_norm/encoder`; and `learning_rate`, see below. What no config names
    is not computed by a compiled update. The `update_outputs` go no further: optax's line searches would refuse them, so these
    are to be wrapped, not chained with `record_outputs`.

    Around `optax.MultiSteps`, with a run of `accumulation_steps=k`, `grad_norm` is tracked of each micro-batch, and the others
    once an update, at its last micro-batch. Inside of `MultiSteps`, `grad_norm` is of the mean gradient; for the rest, see
    `record_outputs`.

    Args:
        optimizer: what to wrap; `optax.MultiSteps` by its `gradient_transformation()`.
        tracking: see the module.
        example: likewise; None if `update` is given no update outputs.
        groups: labels of the parameters, or a function that gives them, as for `optax.multi_transform`; None: their
            top-level keys.
        learning_rate: the number, or the schedule, which gets the optimizer's own count; None: what
            `optax.inject_hyperparams` or a line search keeps in its state, and no such key without. Several have
            `learning_rate/group`.
        steps_per_call: see the module.
        axis_name: likewise.
        mesh: likewise.
    """
    recorder = Recorder(tracking, steps_per_call, axis_name, mesh)
    inner = optax.with_extra_args_support(optimizer)
    recorded = _RecordedOptimizer(inner, recorder, flat_outputs(example or {}), groups, learning_rate)
    return optax.GradientTransformationExtraArgs(recorded.init, recorded.update)


class RecordOptimizerState(NamedTuple):
    """Hold the interval under way, and the state of the optimizer that is recorded."""

    record: RecordState
    inner_state: Any


class _RecordedOptimizer(NamedTuple):
    inner: optax.GradientTransformationExtraArgs
    recorder: Recorder
    example: Mapping[str, Any]
    groups: Groups
    learning_rate: Schedule | float | None

    def init(self, params: Any) -> RecordOptimizerState:
        def measured(params: Any, state: Any) -> dict[str, jax.Array]:
            return norms("grad_norm", params, self.groups) | self._of_update(params, params, state, state)

        state = self.inner.init(params)
        own = jax.eval_shape(measured, params, state)
        _refuse_own("the example has", self.example, own)
        return RecordOptimizerState(self.recorder.init({**self.example, **own}), state)

    def update(
        self, updates: Any, state: RecordOptimizerState, params: Any = None, *, update_outputs: Any = None, **extra: Any
    ) -> tuple[Any, RecordOptimizerState]:
        new, inner_state = self.inner.update(updates, state.inner_state, params, **extra)
        if params is None and any(key.split("/")[0] == "param_norm" for key in state.record.keys):
            raise NoetherError(
                "param_norm is tracked, and update got no params; call optimizer.update(grads, state, params)"
            )
        given, gradients = flat_outputs(update_outputs or {}), norms("grad_norm", updates, self.groups)
        of_update = self._of_update(new, params, state.inner_state, inner_state)
        _refuse_own("update_outputs has", given, {**gradients, **of_update})
        outputs = {**given, **gradients}
        return new, RecordOptimizerState(self.recorder.update(state.record, outputs, of_update), inner_state)

    def _of_update(self, updates: Any, params: Any, before: Any, after: Any) -> dict[str, jax.Array]:
        numbers = norms("update_norm", updates, self.groups) | learning_rates(before, after, self.learning_rate)
        return numbers if params is None else numbers | norms("param_norm", params, self.groups)


def _refuse_own(subject: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    if both := [key for key in own if key in given]:
        raise UpdateOutputError(
            f"{subject} {listing(both)}, which record_optimizer tracks itself; give these outputs other names"
        )


def record_specs(opt_state: Any, axis_name: AxisName) -> Any:
    """Return the specs of an optimizer's state for `shard_map`: a record has a row for each member of mapped axes.

    Each other array has the spec by which it lies on its mesh, or that of a copy on every device.

        specs = record_specs(opt_state, "data")
        jax.shard_map(step, mesh=mesh, in_specs=(specs, PartitionSpec("data")), out_specs=specs)
    """
    whole = PartitionSpec()  # type: ignore[no-untyped-call]

    def of(node: Any) -> Any:
        if not _is_record(node):
            return getattr(getattr(node, "sharding", None), "spec", whole)
        rows = jax.tree.map(lambda _: PartitionSpec(axis_name), node.recorded)  # type: ignore[no-untyped-call]
        return RecordState(rows, jax.tree.map(lambda _: whole, node.schema))

    return jax.tree.map(of, opt_state, is_leaf=_is_record)


def without_records(opt_state: Any) -> Any:
    """Return an optimizer's state without what was recorded, whose structure is the same under every config.

    So a checkpoint of it, or of the whole state and read with `partial_restore=True`, can be restored under another config:

        target = without_records(optimizer.init(params))
        restored = checkpointer.restore(path, args=PyTreeRestore(target, partial_restore=True))
        opt_state = with_records(restored, optimizer.init(params))
    """
    return jax.tree.map(
        lambda node: RecordState(None, None) if _is_record(node) else node, opt_state, is_leaf=_is_record
    )


def with_records(opt_state: Any, fresh: Any) -> Any:
    """Return an optimizer's state with the records of another one of the same optimizer, such as a fresh one.

    Raises:
        NoetherError: if `fresh` has no records in the places where `opt_state` has them.
    """
    try:
        return jax.tree.map(
            lambda own, new: _record(new) if _is_record(own) else own, opt_state, fresh, is_leaf=_is_record
        )
    except ValueError as error:
        raise NoetherError(
            "with_records got the states of two different optimizers; give it the state to go on with, and then"
            f" optimizer.init(params) of the same optimizer: {error}"
        ) from error


def _is_record(node: Any) -> bool:
    return isinstance(node, RecordState)


def _record(node: Any) -> RecordState:
    if not isinstance(node, RecordState) or node.recorded is None:
        raise ValueError("the second has no record where the first has one")
    return node
