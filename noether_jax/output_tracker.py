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
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from noether_core.algebra.expansion import Array
from noether_core.algebra.position import NEVER, encode_position
from noether_core.algebra.sums import Statistics, each, empty, merge
from noether_core.config.load import parse_callback
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, check_last, check_weight, fields_of
from noether_core.errors import MissingKeyError, NoetherError, UpdateOutputError, listing, suggest
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import WHOLE_DTYPES, Newest, Partials
from noether_core.select import flatten, require, select
from noether_jax import packing
from noether_jax.ops import BINARY32, BINARY64, JaxOps, ops_for
from noether_jax.reducer import lift_step
from noether_jax.slots import Slot, checked, group_order, kept_form, slot_of, value_of

AxisName = str | tuple[str, ...]
PositionOf = Callable[[int], tuple[int, int]]  # a step's number (from 0) to its update (from 1) and accumulation step


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class OutputTrackerState:
    """Hold an interval under way. A pytree: its arrays are data, its slots are structure.

    Attributes:
        words: uint32 [fields, slots, 2], see `noether_jax.packing`: the sums, how often each key came, and when last.
        last: the newest value of each key that is reduced with `last`; of a 64-bit one its halves.
        step: int32, how many updates went in.
        slots: what is tracked.
    """

    words: Array
    last: dict[str, Array]
    step: Array
    slots: tuple[Slot, ...] = field(metadata={"static": True})


def track_outputs(
    config: TrackAdditionalOutputsCallbackConfig | Mapping[str, Any],
    *,
    axis_name: AxisName | None = None,
    precision: Literal["binary64", "binary32"] | None = None,
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
    return OutputTracker(tracking_config(config), axis_name, precision)


def tracking_config(
    config: TrackAdditionalOutputsCallbackConfig | Mapping[str, Any],
) -> TrackAdditionalOutputsCallbackConfig:
    """Return the config of a tracking callback that is given as one or as its fields; refuse another callback's."""
    parsed = parse_callback(config)
    if not isinstance(parsed, TrackAdditionalOutputsCallbackConfig):
        raise NoetherError(
            f"got a {type(parsed).__name__} to track outputs by; expected a TrackAdditionalOutputsCallbackConfig or its fields"
        )
    return parsed


class OutputTracker:
    """Hold the pure functions of one config: `init`, `update`, `merge` and `compute`; see `track_outputs`."""

    def __init__(
        self,
        config: TrackAdditionalOutputsCallbackConfig,
        axis_name: AxisName | None = None,
        precision: Literal["binary64", "binary32"] | None = None,
    ) -> None:
        if "stack" in config.asked:
            raise NoetherError(
                "reduce asks for stack, which keeps every value, and a compiled function's state has a fixed size;"
                " give the values to run.step(update_outputs=...) instead, or leave stack out"
            )
        if axis_name is not None and "last" in config.asked:
            raise NoetherError(
                f"reduce asks for last together with axis_name={axis_name!r}: every member of the axis has a last value;"
                " reduce it with mean, or pass one value for all outside of the mapped function"
            )
        self.config = config
        self.fields = fields_of(config)
        self._computation = Computation(config)
        self.axis_name = axis_name
        self._ops: JaxOps
        if precision is None:
            self._ops = ops_for(jax.default_backend())
        elif precision in ("binary64", "binary32"):
            self._ops = BINARY64 if precision == "binary64" else BINARY32
        else:
            raise NoetherError(f"got precision={precision!r}; expected 'binary64', 'binary32' or None")

    # ------------------------------------------------------------------ init

    def init(self, example: Mapping[str, Any]) -> OutputTrackerState:
        """Return the state of no values."""
        state: OutputTrackerState = jax.tree.map(jnp.asarray, self.blank(self.slots(example)))
        return state

    def slots(self, example: Mapping[str, Any]) -> tuple[Slot, ...]:
        """Return what is tracked of outputs like these, scalars of one dtype side by side, the weight last."""
        outputs = flatten(example)
        selection = select(self.config.keys or (), self.config.patterns or (), tuple(outputs))
        if self.config.missing == "error":
            require(selection, tuple(outputs))
        weight = self._weight(outputs) if selection.tracked else None
        slots = []
        for order, key in enumerate(selection.tracked):
            slot = slot_of(key, outputs[key], order)
            check_last(self.config, key, slot.shape)
            if weight is not None and key != self.config.weight:
                check_weight(self.config, key, slot.shape, slot_of(key, weight, 0).shape)
            slots.append(slot)
        return tuple(sorted(slots, key=lambda slot: (slot.key == self.config.weight, *group_order(slot))))

    def blank(self, slots: tuple[Slot, ...]) -> OutputTrackerState:
        """Return the state of no values, in NumPy arrays."""
        return OutputTrackerState(
            packing.initial(self._ops, self.fields, max(1, len(slots)), 0, -1),  # Orbax saves no array without elements
            {slot.key: np.zeros(*kept_form(slot)) for slot in slots if self._keeps(slot.key)},
            np.zeros((), np.int32),
            slots,
        )

    def _keeps(self, key: str) -> bool:
        return "last" in self.config.reductions(key)

    def _weight(self, outputs: Mapping[str, Any]) -> Any:
        name = self.config.weight
        if name is not None and name not in outputs:
            raise MissingKeyError(
                f"the weight {name!r} is not among the update outputs, which have {listing(outputs)}."
                f"{suggest(name, outputs)} It must be there with the tracked values: correct the name, or return it"
            )
        return None if name is None else outputs[name]

    # ------------------------------------------------------------------ update

    def update(self, state: OutputTrackerState, outputs: Mapping[str, Any]) -> OutputTrackerState:
        """Return the state with one step's outputs merged in."""
        if not isinstance(state, OutputTrackerState):
            raise NoetherError(f"update got a state of type {type(state).__name__}; expected what init returned")
        return self.update_at(state, outputs, state.step)

    def update_at(self, state: OutputTrackerState, outputs: Mapping[str, Any], step: jax.Array) -> OutputTrackerState:
        """Return the state with the outputs of the step of that number (int32, counted from 0) merged in."""
        flat = flatten(outputs)
        present = self._present(state.slots, flat)
        numbered = state.step + jnp.int32(1)
        if not present:
            return OutputTrackerState(state.words, state.last, numbered, state.slots)
        ops = self._ops
        with jax.enable_x64(True):
            sums, (uses, newest) = packing.unpack(ops, self.fields, state.words)
            position = step.astype(jnp.int64)
            values = {slot.key: value_of(slot, flat[slot.key]) for slot in present}
            total = self._lift(present, values, self._weight(flat), position)
            times = 1
            if self.axis_name is not None:
                times = _size(self.axis_name)
                total = self._pooled(total, times)
            if len(present) < len(state.slots):
                at = np.array([state.slots.index(slot) for slot in present])
                blank = empty(ops, self.fields, len(state.slots), total.first_nonfinite)
                total = each(lambda old, new: ops.put(old, jnp.asarray(at), new), blank, total)
            is_here = np.array([slot in present for slot in state.slots])
            packed = packing.pack(
                merge(ops, sums, total), uses + np.where(is_here, times, 0), jnp.where(is_here, position, newest)
            )
            last = {key: packing.halved(values[key]) if key in values else old for key, old in state.last.items()}
        return OutputTrackerState(packed, last, numbered, state.slots)

    def _present(self, slots: tuple[Slot, ...], outputs: Mapping[str, Any]) -> tuple[Slot, ...]:
        """Return the slots whose keys are there, after checking that no key is new or wrongly absent."""
        selection = select(self.config.keys or (), self.config.patterns or (), tuple(outputs))
        if self.config.missing == "error":
            require(selection, tuple(outputs))
        known = {slot.key for slot in slots}
        for key in selection.tracked:
            if key not in known:
                raise UpdateOutputError(
                    f"update output {key!r} was not in the example that init got, which had {listing(sorted(known))};"
                    " give init an example with every key that ever comes"
                )
        return tuple(slot for slot in slots if slot.key in set(selection.tracked))

    def _lift(
        self, present: Sequence[Slot], values: Mapping[str, jax.Array], weight: Any, position: jax.Array
    ) -> Statistics:
        """Return the sums of one step's values, in the order of their slots."""
        factor = None if weight is None else checked(self.config.weight or "", weight)
        parts = []
        for is_weight in (False, True):
            members = [slot for slot in present if (slot.key == self.config.weight) == is_weight]
            if not members:
                continue
            groups: dict[str, list[jax.Array]] = {}
            for slot in members:
                if prod(slot.shape) == 1:
                    groups.setdefault(slot.dtype, []).append(values[slot.key])
                elif factor is not None and not is_weight:
                    check_weight(self.config, slot.key, slot.shape, factor.shape)
            arrays = tuple(values[slot.key] for slot in members if prod(slot.shape) != 1)
            # the weight itself is weighed by 1, so that all slots have one form
            beside = jnp.ones((1,), jnp.float32) if is_weight and self.fields.weights else factor
            total, _ = lift_step(self._ops, tuple(map(tuple, groups.values())), arrays, beside, position, self.fields)
            parts.append(total)
        return each(lambda *arrays: jnp.concatenate(arrays), *parts)

    def _pooled(self, total: Statistics, times: int) -> Statistics:
        """Return the merged sums of all members of the mapped axes, the same on each of them.

        Each writes its own row of a buffer that is otherwise 0, and the integer sum of the buffers is all the rows: no
        float is ever added by the collective, so its order changes nothing.
        """
        own = packing.pack(total)
        buffer = jnp.zeros((times, *own.shape), own.dtype).at[jax.lax.axis_index(self.axis_name)].set(own)
        rows: jax.Array = jax.lax.psum(buffer, self.axis_name)  # type: ignore[no-untyped-call]
        parts = [packing.unpack(self._ops, self.fields, rows[at])[0] for at in range(times)]
        return self._ops.fold(each(lambda *arrays: jnp.stack(arrays), *parts))

    # ------------------------------------------------------------------ merge and compute

    def merge(self, a: OutputTrackerState, b: OutputTrackerState) -> OutputTrackerState:
        """Return the state of both parts of an interval; of equally new values for `last` the second's is kept."""
        if a.slots != b.slots:
            raise NoetherError(
                f"merge got states of different outputs: {listing(slot.key for slot in a.slots)} and"
                f" {listing(slot.key for slot in b.slots)}; make both with one init"
            )
        keys = [slot.key for slot in a.slots]
        with jax.enable_x64(True):
            (first, (uses, newest)), (second, (more, newer)) = (
                packing.unpack(self._ops, self.fields, state.words) for state in (a, b)
            )
            packed = packing.pack(merge(self._ops, first, second), uses + more, jnp.maximum(newest, newer))
            is_newer = newer >= newest
        last = {key: jnp.where(is_newer[keys.index(key)], b.last[key], old) for key, old in a.last.items()}
        return OutputTrackerState(packed, last, jnp.maximum(a.step, b.step), a.slots)

    def compute(self, state: OutputTrackerState) -> dict[str, np.ndarray[Any, Any]]:
        """Return each key's computed values. This waits for the device."""
        hosted = jax.device_get(state)
        partials = self.partials(hosted, lambda step: (step + 1, 0))
        return self._computation.compute(partials, int(hosted.step)).arrays()

    def partials(self, state: OutputTrackerState, position_of: PositionOf) -> Partials:
        """Return what each key that came has, in the order of logging; the state's arrays are on the host."""
        statistics, (uses, newest) = packing.from_host(self._ops, self.fields, state.words)
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


def _size(axis_name: AxisName) -> int:
    names = (axis_name,) if isinstance(axis_name, str) else axis_name
    return prod(int(jax.lax.axis_size(name)) for name in names)
