"""Track update outputs inside of compiled functions: a pure `init`, `update`, `merge` and `compute`.

    tracker = track_outputs(config)
    state = tracker.init(jax.eval_shape(step, params, batch))     # outside
    state = tracker.update(state, outputs)                        # inside of jit, scan, vmap, shard_map
    values = tracker.compute(state)                               # outside; waits for the device

A state has one vector of sums per reduction, with a slot per key, and the newest value of each key that is reduced with
`last`. Its structure, shapes and dtypes never change, so it can be the carry of a scan; and it can be donated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.position import NEVER, encode_position
from noether_core.algebra.sums import Statistics, each
from noether_core.config.load import parse_callback
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, check_weight, fields_of
from noether_core.errors import NoetherError, listing
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import WHOLE_DTYPES, Newest, Partials
from noether_core.select import flat_outputs, weight_of
from noether_jax import packing
from noether_jax.binary32 import Precision, ops_for
from noether_jax.flax_state import make_serializable
from noether_jax.meshes import brought_together, together
from noether_jax.rows import joined, lift_scalars, lift_step_arrays, merge_rows, source_of, stacked
from noether_jax.slots import Slot, checked, kept_form, kind_of, present_of, slots_of, value_of
from noether_jax.tracker_state import (
    OutputTrackerState,
    check_alone,
    check_concrete,
    check_identities,
    identities,
    leading_axes,
    stack_members,
)
from noether_jax.transfers import ours, to_device, to_host

AxisName = str | tuple[str, ...]
PositionOf = Callable[[int], tuple[int, int]]  # a step's number (from 0) to its update (from 1) and accumulation step


def track_outputs(
    config: TrackAdditionalOutputsCallbackConfig | Mapping[str, Any],
    *,
    axis_name: AxisName | None = None,
    precision: Precision | None = None,
) -> OutputTracker:
    """Return the pure tracker of a config; its interval is not looked at.

    Args:
        config: a config, or its fields as a dict.
        axis_name: mapped axes (of `shard_map` or `vmap`) whose members' values are pooled at each update. The state is
            the same on all of them.
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
    return OutputTracker(config, axis_name, precision)


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
        self.axis_name = axis_name
        self._ops = ops_for(precision)
        self._meaning = meaning
        make_serializable(OutputTrackerState, "words", "last", "step")
        self._blanks: dict[tuple[Slot, ...], OutputTrackerState] = {}
        self._compiled = jax.jit(self._updated, static_argnums=0)

    def init(self, example: Mapping[str, Any]) -> OutputTrackerState:
        """Return the state of no values."""
        state: OutputTrackerState = to_device(self.blank(slots_of(self.config, example)))
        return state

    def blank(self, slots: tuple[Slot, ...]) -> OutputTrackerState:
        """Return the state of no values, in NumPy arrays."""
        if slots not in self._blanks:
            last = {slot.key: _zeros(*kept_form(slot)) for slot in slots if "last" in self.config.reductions(slot.key)}
            what = identities(self.config, self._ops, slots, self._meaning)
            # one slot at least, for Orbax saves no array without elements
            words = packing.initial(self._ops, self.fields, len(what), 0, -1, what)
            self._blanks[slots] = OutputTrackerState(words, last, np.zeros((), np.int32), slots)
        return self._blanks[slots]

    def update(
        self, state: OutputTrackerState, outputs: Mapping[str, Any], step: jax.Array | None = None
    ) -> OutputTrackerState:
        """Return the state with one step's outputs merged in: of the step of that number (int32, from 0), or of the next.

        No gradient flows into a state.
        """
        self._check_alone(state, "update")
        flat = flat_outputs(outputs)
        present = present_of(self.config, state.slots, flat)
        weight = weight_of(self.config.weight, flat) if present else None
        with ours():
            values = {slot.key: value_of(slot, flat[slot.key]) for slot in present}
            factor = None if weight is None else checked(self.config.weight or "", weight)
            given = state, values, factor, step
            if (arrays := brought_together(given)) is not None:
                return self._compiled(present, *arrays)  # type: ignore[no-any-return]
            return self._updated(present, *given)

    def _updated(self, present: tuple[Slot, ...], *given: Any) -> OutputTrackerState:
        with together(given) as shared:
            new = self._merged(present, *jax.lax.stop_gradient(shared.taken(given)))
        return shared.given(new, given[0])

    def _merged(
        self, present: tuple[Slot, ...], state: OutputTrackerState, values: dict[str, jax.Array], weight: Any, step: Any
    ) -> OutputTrackerState:
        numbered = state.step + jnp.int32(1)
        if not present:
            return OutputTrackerState(state.words, state.last, numbered, state.slots)
        sums, (uses, newest, what) = packing.unpack(self._ops, self.fields, state.words)
        position = (state.step if step is None else step).astype(jnp.int64)
        rows = self._lift(present, values, weight, position)
        if self.axis_name is not None:
            rows = self._gathered(rows)
        source = source_of([state.slots.index(slot) for slot in present], len(state.slots))
        total = merge_rows(self._ops, sums, rows, source, self.fields)
        is_here = np.array([slot in present for slot in state.slots])
        times = np.where(is_here, len(rows.first_nonfinite), 0)
        packed = packing.pack(self._ops, total, uses + times, jnp.where(is_here, position, newest), what)
        last = {key: packing.bits(values[key]) if key in values else old for key, old in state.last.items()}
        return OutputTrackerState(packed, last, numbered, state.slots)

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
                sums = lift_step_arrays(self._ops, own, beside, position, self.fields)
                parts.append(each(lambda field: field[None], sums))
            else:
                row = stacked(own)[None]
                weights = None if beside is None else beside.reshape(1, 1)
                parts.append(lift_scalars(self._ops, [row], weights, position.reshape(1), self.fields))
        return joined(parts)

    def _gathered(self, rows: Statistics) -> Statistics:
        """Return the rows of all members of the mapped axes, the same on each of them.

        Each writes its own row of a buffer that is otherwise 0, and the integer sum of the buffers is all the rows: no
        float is ever added by the collective, so its order changes nothing.
        """
        own = packing.pack(self._ops, self._ops.fold(rows))
        names = (self.axis_name,) if isinstance(self.axis_name, str) else self.axis_name or ()
        times = prod(int(jax.lax.axis_size(name)) for name in names)
        buffer = jnp.zeros((times, *own.shape), own.dtype).at[jax.lax.axis_index(self.axis_name)].set(own)
        words: jax.Array = jax.lax.psum(buffer, self.axis_name)  # type: ignore[no-untyped-call]
        return packing.unpack(self._ops, self.fields, words.swapaxes(0, 1))[0]

    def merge(self, a: OutputTrackerState, b: OutputTrackerState) -> OutputTrackerState:
        """Return the state of both parts of an interval; of equally new values for `last` the second's is kept."""
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
                packing.unpack(self._ops, self.fields, state.words) for state in (one, other)
            )
            total = merge_rows(self._ops, first, each(lambda field: field[None], second), None, self.fields)
            packed = packing.pack(self._ops, total, uses + more, jnp.maximum(newest, newer), what)
            is_newer = newer >= newest
            last = {key: jnp.where(is_newer[keys.index(key)], other.last[key], old) for key, old in one.last.items()}
            new = OutputTrackerState(packed, last, jnp.maximum(one.step, other.step), a.slots)
        return shared.given(new, a)

    def compute(self, state: OutputTrackerState) -> dict[str, np.ndarray[Any, Any]]:
        """Return each key's computed values. This waits for the device.

        Of a state with leading axes, as `jax.vmap` gives, each value has these axes too: one result per member.

        Raises:
            NoetherError: for a state that another config made, or inside of a function that JAX traces.
        """
        if not isinstance(state, OutputTrackerState):
            raise NoetherError(f"compute got a state of type {type(state).__name__}; expected what init returned")
        check_concrete(state, "compute")
        hosted = to_host(state)
        leading = leading_axes(hosted, self.blank(hosted.slots))
        results = [self._computed(jax.tree.map(lambda array, at=at: array[at], hosted)) for at in np.ndindex(*leading)]
        return stack_members(results, leading) if leading else results[0]

    def _computed(self, hosted: OutputTrackerState) -> dict[str, np.ndarray[Any, Any]]:
        partials = self.partials(hosted, lambda step: (step + 1, 0))
        return self._computation.compute(partials, int(hosted.step)).arrays()

    def partials(self, state: OutputTrackerState, position_of: PositionOf) -> Partials:
        """Return what each key that came has, in the order of logging; the state's arrays are on the host."""
        self._check_alone(state, "partials")
        statistics, (uses, newest, what) = packing.from_host(self._ops, self.fields, state.words)
        check_identities(what, packing.from_host(self._ops, self.fields, self.blank(state.slots).words)[1][2])
        first = np.where(statistics.first_nonfinite == np.iinfo(np.int64).max, NEVER, statistics.first_nonfinite)
        for at in np.flatnonzero(first != NEVER).tolist():
            first[at] = encode_position(*position_of(int(first[at])))
        slots = state.slots
        last = {
            slot.key: Newest(
                np.asarray(state.last[slot.key]).view(jnp.dtype(slot.dtype)).reshape(slot.shape),
                position_of(int(newest[at]))[0],
            )
            for at, slot in enumerate(slots)
            if slot.key in state.last and uses[at]
        }
        found = Partials(
            tuple(slot.key for slot in slots),
            each(lambda vector: vector[: len(slots)], statistics._replace(first_nonfinite=first)),
            uses[: len(slots)] * np.array([prod(slot.shape) for slot in slots], np.int64),
            np.array([slot.wide for slot in slots], bool),
            np.array([slot.dtype in WHOLE_DTYPES for slot in slots], bool),
            np.array([self.fields.weights and slot.key != self.config.weight for slot in slots], bool),
            last,
        )
        order = sorted(np.flatnonzero(uses[: len(slots)]).tolist(), key=lambda at: slots[at].order)
        return found.take(np.array(order, np.int64))


def _zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return zeros that take the memory of one."""
    return np.broadcast_to(np.zeros((), dtype), shape)
