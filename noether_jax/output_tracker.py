"""Track update outputs inside of compiled functions: a pure `init`, `update`, `merge` and `compute`.

    tracker = track_outputs(config)
    state = tracker.init(jax.eval_shape(step, params, batch))     # outside
    state = tracker.update(state, outputs)                        # inside of jit, scan, vmap, shard_map
    values = tracker.compute(state)                               # outside; waits for the device

A state has one vector of sums per reduction, with a slot per key, and the newest value of each key that is reduced with
`last`. Its structure, shapes and dtypes never change, so it can be the carry of a scan; and it can be donated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from noether_core.algebra.sums import Statistics, each
from noether_core.config.load import parse_callback
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, check_weight, fields_of
from noether_core.errors import NoetherError, listing
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import Partials
from noether_core.select import flat_outputs, weight_of
from noether_jax import packing
from noether_jax.binary32 import Precision, ops_for
from noether_jax.fetched_state import PositionOf, read_state
from noether_jax.flax_state import make_serializable
from noether_jax.members import AxisName, as_row, members_of, own_row
from noether_jax.meshes import brought_together, together
from noether_jax.recent import blank_row, row_of
from noether_jax.rows import joined, lift_scalars, lift_step_arrays, merge_rows, source_of, stacked
from noether_jax.slots import Slot, checked, kept_form, kind_of, present_of, slots_of, value_of
from noether_jax.tracker_state import (
    OutputTrackerState,
    check_alone,
    check_concrete,
    identities,
    leading_axes,
    stack_members,
)
from noether_jax.transfers import ours, to_device, to_host

_How = tuple[tuple[Slot, ...], bool]  # which slots a step has, and whether its row is wanted


def track_outputs(
    config: TrackAdditionalOutputsCallbackConfig | Mapping[str, Any],
    *,
    axis_name: AxisName | None = None,
    mesh: Mesh | int | None = None,
    precision: Precision | None = None,
) -> OutputTracker:
    """Return the pure tracker of a config; its interval is not looked at.

    Args:
        config: a config, or its fields as a dict.
        axis_name: mapped axes (of `shard_map` or `vmap`) whose members each have a row of the state, joined by `compute`:
            every array has them as its leading axis, so that `PartitionSpec(axis_name)` is the spec of the whole state.
        mesh: the mesh that has these axes; for `vmap`, how many members. None: the mesh of `jax.set_mesh`.
        precision: what to reduce in; None: binary64 where the default device has it, else binary32. The finished
            bits are the same.

    Raises:
        NoetherError: if the config asks for what cannot be done inside of a compiled function.
        UpdateOutputError, MissingKeyError: from `init` and `update`, for outputs that cannot be tracked.

    >>> tracker = track_outputs({"every_n_updates": 2, "keys": ["loss"]})
    >>> state = tracker.init({"loss": jnp.float32(0)})
    >>> for loss in (1.0, 2.0):
    ...     state = jax.jit(tracker.update)(state, {"loss": jnp.float32(loss)})
    >>> tracker.compute(state)
    {'loss': array(1.5, dtype=float32)}
    """
    return OutputTracker(config, axis_name, precision, mesh=mesh)


class OutputTracker:
    """Hold the pure functions of one config: `init`, `update`, `merge` and `compute`; see `track_outputs`.

    Of `meaning`, such as where the intervals end, a state that comes back must be too.
    """

    def __init__(
        self,
        config: TrackAdditionalOutputsCallbackConfig | Mapping[str, Any],
        axis_name: AxisName | None = None,
        precision: Precision | None = None,
        meaning: str = "",
        mesh: Mesh | int | None = None,
    ) -> None:
        wanted = parse_callback(config)
        if not isinstance(wanted, TrackAdditionalOutputsCallbackConfig):
            raise NoetherError(
                f"got a {type(wanted).__name__} to track outputs by; expected a TrackAdditionalOutputsCallbackConfig or its"
                " fields"
            )
        if "stack" in wanted.asked:
            raise NoetherError(
                "reduce asks for stack, which keeps every value, and a compiled function's state has a fixed size;"
                " give the values to run.step(update_outputs=...) instead, or leave stack out"
            )
        if axis_name is not None and "last" in wanted.asked:
            raise NoetherError(
                f"reduce asks for last together with axis_name={axis_name!r}: every member of the axis has a last value;"
                " reduce it with mean, or pass one value for all outside of the mapped function"
            )
        self.config = wanted
        self.fields = fields_of(wanted)
        self._computation = Computation(wanted)
        self.members = members_of(axis_name, mesh)
        self.ops = ops_for(precision)
        self._meaning = meaning
        make_serializable(OutputTrackerState, "words", "last", "step")
        self._blanks: dict[tuple[Slot, ...], OutputTrackerState] = {}
        self._compiled = jax.jit(self._together, static_argnums=0)

    def init(self, example: Mapping[str, Any]) -> OutputTrackerState:
        """Return the state of no values."""
        blank = self.blank(slots_of(self.config, example))
        state: OutputTrackerState = to_device(blank) if self.members is None else self.members.spread(blank)
        return state

    def blank(self, slots: tuple[Slot, ...]) -> OutputTrackerState:
        """Return the state of no values, in NumPy arrays."""
        if slots not in self._blanks:
            last = {slot.key: _zeros(*kept_form(slot)) for slot in slots if "last" in self.config.reductions(slot.key)}
            what = identities(self.config, self.ops, slots, self._meaning)
            # one slot at least, for Orbax saves no array without elements
            words = packing.initial(self.ops, self.fields, len(what), 0, -1, what)
            self._blanks[slots] = OutputTrackerState(words, last, np.zeros((), np.int32), slots)
        return self._blanks[slots]

    def update(
        self, state: OutputTrackerState, outputs: Mapping[str, Any], step: jax.Array | None = None
    ) -> OutputTrackerState:
        """Return the state with one step's outputs merged in: of the step of that number (int32, from 0), or of the next.

        No gradient flows into a state.
        """
        if self.members is None or not isinstance(state, OutputTrackerState):
            return self.updated(state, outputs, step)[0]
        if not self.members.is_row(np.shape(state.step), "update"):
            return self.updated(state, outputs, step)[0]
        return as_row(self.updated(own_row(state), outputs, step)[0])

    def updated(
        self, state: OutputTrackerState, outputs: Mapping[str, Any], step: jax.Array | None, keeps_row: bool = False
    ) -> tuple[OutputTrackerState, jax.Array | None]:
        """Return the state as `update` does, of a member its own; and the words of the step if they are wanted."""
        self._check_alone(state, "update")
        flat = flat_outputs(outputs)
        present = present_of(self.config, state.slots, flat)
        weight = weight_of(self.config.weight, flat) if present else None
        with ours():
            values = {slot.key: value_of(slot, flat[slot.key]) for slot in present}
            factor = None if weight is None else checked(self.config.weight or "", weight)
            given = state, values, factor, step
            if (arrays := brought_together(given)) is not None:
                return self._compiled((present, keeps_row), *arrays)  # type: ignore[no-any-return]
            return self._together((present, keeps_row), *given)

    def _together(self, how: _How, *given: Any) -> tuple[OutputTrackerState, jax.Array | None]:
        with together(given) as shared:
            state, values, weight, step = jax.lax.stop_gradient(shared.taken(given))
            # as they were rounded: without this, XLA takes the widening of a narrow float that the step has just computed
            # for its undoing, and reduces what was there before it was rounded
            values, weight = jax.lax.optimization_barrier((values, weight))  # type: ignore[no-untyped-call]
            new = self._merged_in(how, state, values, weight, step)
        return shared.given(new, (given[0], None if new[1] is None else given[0].words))

    def _merged_in(
        self, how: _How, state: OutputTrackerState, values: dict[str, jax.Array], weight: Any, step: Any
    ) -> tuple[OutputTrackerState, jax.Array | None]:
        present, keeps_row = how
        numbered = state.step + jnp.int32(1)
        if not present:
            row = jnp.asarray(blank_row(self.ops, len(state.slots), self.fields)) if keeps_row else None
            return OutputTrackerState(state.words, state.last, numbered, state.slots), row
        sums, (uses, newest, what) = packing.unpack(self.ops, self.fields, state.words)
        position = (state.step if step is None else step).astype(jnp.int64)
        if self.members is not None:
            self.members.check_covers(values)
        rows = self._lift(present, values, weight, position)
        source = source_of([state.slots.index(slot) for slot in present], len(state.slots))
        total = merge_rows(self.ops, sums, rows, source, self.fields)
        is_here = np.array([slot in present for slot in state.slots])
        packed = packing.pack(
            self.ops, total, uses + is_here.astype(np.int64), jnp.where(is_here, position, newest), what
        )
        last = {key: packing.bits(values[key]) if key in values else old for key, old in state.last.items()}
        row = row_of(self.ops, rows, source, is_here, self.fields) if keeps_row else None
        return OutputTrackerState(packed, last, numbered, state.slots), row

    def _check_alone(self, state: OutputTrackerState, method: str) -> None:
        if not isinstance(state, OutputTrackerState):
            raise NoetherError(f"{method} got a state of type {type(state).__name__}; expected what init returned")
        check_alone(state, self.blank(state.slots), method)

    def _lift(
        self, present: Sequence[Slot], values: Mapping[str, jax.Array], weight: jax.Array | None, position: jax.Array
    ) -> Statistics:
        """Return the sums of one step's values, as one row, in the order of their slots."""
        one = jnp.ones((1,), jnp.float32) if self.fields.weights else None
        parts = []
        for (is_weight, is_array, _), members in groupby(present, key=lambda slot: kind_of(self.config, slot)):
            slots = list(members)
            own = [values[slot.key] for slot in slots]
            beside = one  # the weight itself is weighed by 1, so that all slots have one form
            if weight is not None and not is_weight:
                beside = weight
                for slot in slots:
                    check_weight(self.config, slot.key, slot.shape, weight.shape)
            if is_array:
                sums = lift_step_arrays(self.ops, own, beside, position, self.fields)
                parts.append(each(lambda field: field[None], sums))
            else:
                row = stacked(own)[None]
                weights = None if beside is None else beside.reshape(1, 1)
                parts.append(lift_scalars(self.ops, [row], weights, position.reshape(1), self.fields))
        return joined(parts)

    def merge(self, a: OutputTrackerState, b: OutputTrackerState) -> OutputTrackerState:
        """Return the state of both parts of an interval; of equally new values for `last` the second's is kept."""
        leading = np.shape(a.step) if isinstance(a, OutputTrackerState) else ()
        if self.members is not None and len(leading) == 1 and leading == np.shape(b.step):
            return jax.vmap(self._merged)(a, b)
        return self._merged(a, b)

    def _merged(self, a: OutputTrackerState, b: OutputTrackerState) -> OutputTrackerState:
        for state in (a, b):
            self._check_alone(state, "merge")
        if a.slots != b.slots:
            raise NoetherError(
                f"merge got states of different outputs: {listing(slot.key for slot in a.slots)} and"
                f" {listing(slot.key for slot in b.slots)}; make both with one init"
            )
        with ours():
            if (arrays := brought_together((a, b))) is not None:
                return jax.jit(self._joined)(*arrays)  # type: ignore[no-any-return]
            return self._joined(a, b)

    def _joined(self, a: OutputTrackerState, b: OutputTrackerState) -> OutputTrackerState:
        keys = [slot.key for slot in a.slots]
        with together(a, b) as shared:
            one, other = shared.taken((a, b))
            (first, (uses, newest, what)), (second, (more, newer, _)) = (
                packing.unpack(self.ops, self.fields, state.words) for state in (one, other)
            )
            total = merge_rows(self.ops, first, each(lambda field: field[None], second), None, self.fields)
            packed = packing.pack(self.ops, total, uses + more, jnp.maximum(newest, newer), what)
            is_newer = newer >= newest
            last = {key: jnp.where(is_newer[keys.index(key)], other.last[key], old) for key, old in one.last.items()}
            new = OutputTrackerState(packed, last, jnp.maximum(one.step, other.step), a.slots)
        return shared.given(new, a)

    def compute(self, state: OutputTrackerState) -> dict[str, np.ndarray[Any, Any]]:
        """Return each key's computed values. This waits for the device.

        With `axis_name`, of all members together. Of a state with other leading axes, as `jax.vmap` gives, each value has these
        axes too: one result per member.

        Raises:
            NoetherError: for a state that another config made, or inside of a function that JAX traces.
        """
        if not isinstance(state, OutputTrackerState):
            raise NoetherError(f"compute got a state of type {type(state).__name__}; expected what init returned")
        check_concrete(state, "compute")
        hosted = to_host(state)
        leading = leading_axes(hosted, self.blank(hosted.slots))
        if self.members is None:
            hosted = jax.tree.map(lambda array: array.reshape(*leading, 1, *array.shape[len(leading) :]), hosted)
        else:
            self.members.check_outside(leading, "compute")
            leading = leading[:-1]
        results = [self._computed(jax.tree.map(lambda array, at=at: array[at], hosted)) for at in np.ndindex(*leading)]
        return stack_members(results, leading) if leading else results[0]

    def _computed(self, hosted: OutputTrackerState) -> dict[str, np.ndarray[Any, Any]]:
        partials = self.partials(hosted, lambda step: (step + 1, 0))
        return self._computation.compute(partials, int(np.max(hosted.step))).arrays()

    def partials(self, state: OutputTrackerState, position_of: PositionOf) -> Partials:
        """Return what each key that came has, in the order of logging.

        The state's arrays are on the host, and each has a leading axis of members (at least one), which are joined.
        """
        return read_state(self.config, self.ops, self.blank(state.slots), state, position_of)


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return zeros that take the memory of one."""
    return np.broadcast_to(np.zeros((), dtype), shape)
