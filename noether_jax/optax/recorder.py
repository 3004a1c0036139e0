"""Hold the interval under way in an optimizer's state; see `noether_jax.optax`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from noether_core.callbacks import TrackAdditionalOutputsCallback
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import NoetherError
from noether_jax.callbacks import Run
from noether_jax.members import AxisName, as_row, members_of, own_row
from noether_jax.output_tracker import OutputTracker
from noether_jax.tracker_state import OutputTrackerState
from noether_jax.transfers import ours, to_device
from noether_jax.windows import Tracked, is_row_of, track

Tracking = Run | TrackAdditionalOutputsCallbackConfig | Mapping[str, Any]


class RecordState(NamedTuple):
    """Hold the interval under way; `optax.tree.get(opt_state, "recorded")` finds it.

    Attributes:
        recorded: what a run carries; or a config's `OutputTrackerState`; or None, see `without_records`.
        schema: a dict whose one key stands for the config and the example, so that a checkpoint that was made with others
            has another structure, and is not taken for one of these.
    """

    recorded: Tracked | OutputTrackerState | None
    schema: dict[str, jax.Array] | None

    @property
    def keys(self) -> set[str]:
        """Return the keys that are tracked."""
        states = jax.tree.leaves(self.recorded, is_leaf=lambda node: isinstance(node, OutputTrackerState))
        return {slot.key for state in states if isinstance(state, OutputTrackerState) for slot in state.slots}


class Recorder:
    """Hold what both transformations do with the update outputs."""

    def __init__(
        self, tracking: Tracking, steps_per_call: int, axis_name: AxisName | None, mesh: Mesh | int | None
    ) -> None:
        self._run = tracking if isinstance(tracking, Run) else None
        configs: list[TrackAdditionalOutputsCallbackConfig | Mapping[str, Any]]
        if isinstance(tracking, Run):
            callbacks = [each for each in tracking.callbacks if isinstance(each, TrackAdditionalOutputsCallback)]
            configs = [callback.config for callback in callbacks]
        else:
            configs = [tracking]
        self._members = members_of(axis_name, mesh)
        self._trackers = tuple(OutputTracker(config, axis_name, mesh=mesh) for config in configs)
        if self._run is None and steps_per_call != 1:
            raise NoetherError(f"got steps_per_call={steps_per_call} for a config; a run counts calls, give the run")
        # those of an accumulation step that does not end its update: what comes once an update may be absent
        lenient = [tracker.config.model_copy(update={"missing": "skip"}) for tracker in self._trackers]
        self._lenient = tuple(OutputTracker(config, axis_name, mesh=mesh) for config in lenient)
        self._steps_per_call, self._axis_name = steps_per_call, axis_name

    def init(self, example: Mapping[str, Any]) -> RecordState:
        """Return the state of no values."""
        recorded: Tracked | OutputTrackerState
        mesh = None if self._members is None else self._members.mesh  # of jax.set_mesh there is none while JAX traces
        if self._run is None:
            recorded = self._trackers[0].init(example)
        else:
            with jax.ensure_compile_time_eval():  # the run keeps it, also if this is traced
                recorded = self._run.init(
                    example, steps_per_call=self._steps_per_call, axis_name=self._axis_name, mesh=mesh
                )
            recorded = jax.tree.map(jnp.array, recorded)  # a copy, for it may be donated
        return RecordState(recorded, {self._schema(recorded): to_device(np.zeros((), np.uint32))})

    def _schema(self, recorded: Tracked | OutputTrackerState) -> str:
        """Return a name for what the numbers in a state mean."""
        fields = {"every_n_epochs", "every_n_updates", "every_n_samples", "reduce", "weight"}
        meaning = [tracker.config.model_dump(include=fields) for tracker in self._trackers]
        arrays = jax.tree.map(lambda array: (array.shape, array.dtype.name), recorded)
        return f"of_{zlib.crc32(repr((meaning, arrays)).encode()):08x}"

    def update(
        self, state: RecordState, outputs: Mapping[str, Any], of_update: Mapping[str, Any] | None = None
    ) -> RecordState:
        """Return the state with one accumulation step's outputs merged in, and with its update's if it ends one."""
        recorded, both = state.recorded, {**outputs, **(of_update or {})}
        if isinstance(recorded, OutputTrackerState) and self._run is None:
            return state._replace(recorded=self._trackers[0].update(recorded, both))
        if not isinstance(recorded, Tracked) or self._run is None:
            raise NoetherError(
                f"update got a state that records {type(recorded).__name__}; expected what init returned, or with_records"
            )
        steps = self._run.accumulation_steps
        if of_update is None or steps == 1:
            return state._replace(recorded=track(self._trackers, recorded, both, self._members))
        if is_row := is_row_of(self._members, recorded, "update"):
            recorded = own_row(recorded)
        with ours():
            new = jax.lax.cond(
                recorded.position % jnp.int32(steps) == jnp.int32(steps - 1),
                lambda: track(self._trackers, recorded, both, self._members),
                lambda: track(self._lenient, recorded, outputs, self._members),
            )
        new = as_row(new) if is_row else new
        return state._replace(recorded=new)
