"""Give the core's callbacks (see `CallbackBase` for their arguments) and run JAX, and the run its fused way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar, overload

from jax.sharding import Mesh

from noether_core import callbacks
from noether_core.callbacks.build import CORE_CLASSES, CallbackClasses
from noether_core.config.loop import LearningRateCallbackConfig, OnlineLossCallbackConfig, ProbeCallbackConfig
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import HookOrderError, NoetherError
from noether_core.interrupts import in_turn
from noether_core.probes.run import ProbedRun
from noether_core.run_state import Standing
from noether_jax.backend import BACKEND
from noether_jax.fused import Fused
from noether_jax.members import AxisName, members_of
from noether_jax.probes import ProbeCallback
from noether_jax.tracked_tree import Path, find_tracked, put_tracked
from noether_jax.windows import Tracked, track

Tree = TypeVar("Tree")  # a pytree that holds a Tracked


class TrackAdditionalOutputsCallback(callbacks.TrackAdditionalOutputsCallback):
    """Reduce the JAX update outputs that a config names, and log or save them at every interval's end."""

    backend = BACKEND


class OnlineLossCallback(callbacks.OnlineLossCallback):
    """Log the mean of each JAX loss over the interval, and stop at one that is not finite."""

    backend = BACKEND


class LearningRateCallback(callbacks.LearningRateCallback):
    """Log the learning rate, from a JAX update output or from an optimizer."""

    backend = BACKEND


class Run(ProbedRun):
    """Track a JAX training run; see `noether_core.run.Run` for the arguments.

    Update outputs are given to `step`, or reduced inside of your compiled function, where nothing leaves the device between
    the intervals' ends:

        with run:
            tracked = run.init(jax.eval_shape(train_step, params, batch)[1])
            for batch in batches:
                params, tracked = fused_step(params, tracked, batch)  # jitted; calls run.track(tracked, outputs)
                tracked = run.step(tracked)
    """

    backend = BACKEND
    callback_classes: ClassVar[CallbackClasses] = {
        **CORE_CLASSES,
        LearningRateCallbackConfig: LearningRateCallback,
        OnlineLossCallbackConfig: OnlineLossCallback,
        ProbeCallbackConfig: ProbeCallback,
        TrackAdditionalOutputsCallbackConfig: TrackAdditionalOutputsCallback,
    }
    _fused: Fused | None = None
    _loaded = 0  # accumulation steps
    _path: Path = ()  # to the Tracked in what step gets

    @in_turn
    def init(
        self,
        example: Mapping[str, Any],
        *,
        steps_per_call: int = 1,
        axis_name: AxisName | None = None,
        mesh: Mesh | int | None = None,
    ) -> Tracked:
        """Return what a compiled function is to carry for this run.

        Args:
            example: update outputs, or their `jax.ShapeDtypeStruct`s, with every key that ever comes.
            steps_per_call: the most accumulation steps that one call of `step` will count, where a function scans over many.
            axis_name: mapped axes (of `shard_map` or `vmap`) whose members each have a row, joined at an interval's end: every
                array has them as its leading axis, so that `PartitionSpec(axis_name)` is the spec of all that is returned.
            mesh: the mesh that has these axes; for `vmap`, how many members. None: the mesh of `jax.set_mesh`.

        Raises:
            UpdateOutputError, MissingKeyError: for outputs that cannot be tracked.
            NoetherError: for a config that asks for what cannot be done inside of a compiled function, or a recording.
        """
        if self.recorder is not None:
            raise NoetherError(
                "this run records update outputs, and those that run.track gets never reach the host; leave record out, or"
                " give the outputs to run.step(update_outputs=...)"
            )
        self._fused = Fused(self, example, steps_per_call, members_of(axis_name, mesh), self._loaded)
        return self._fused.tracked

    def track(self, tracked: Tracked, update_outputs: Mapping[str, Any]) -> Tracked:
        """Return what `init`, `step` or another `track` returned with one accumulation step's outputs merged in.

        Pure: for use inside of `jit`, `scan`, `shard_map`. The outputs are as the example was.
        """
        fused = self._used("track", tracked)
        return track(fused.output_trackers, tracked, update_outputs, fused.members)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned. Call it inside the `with` block, before `init`."""
        super().load_state_dict(state)

    def _load(self, standing: Standing) -> None:
        self._loaded = (standing.iteration.update or 0) * self.accumulation_steps + standing.accumulated
        super()._load(standing)

    @property
    def tracked(self) -> Tracked:
        """Return what the next call is to carry, also after `step` raised because of what an interval held."""
        return self._used("tracked", None).tracked

    def _used(self, method: str, tracked: Any) -> Fused:
        if self._fused is None:
            raise HookOrderError(f"run.{method} needs run.init first: tracked = run.init(example outputs)")
        if tracked is not None and not isinstance(tracked, Tracked):
            raise NoetherError(
                f"run.{method} got {type(tracked).__name__} as tracked; expected what run.init, run.track or run.step returned"
            )
        return self._fused

    @overload
    def step(
        self,
        update_outputs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        *,
        steps: int | None = None,
        batch: Any = None,
        losses: Any = None,
        samples: int | None = None,
        ends_update: bool | None = None,
        ends_epoch: bool | None = None,
        times: Mapping[str, float] | None = None,
    ) -> None: ...

    @overload
    def step(
        self,
        update_outputs: Tree,
        *,
        steps: int | None = None,
        batch: Any = None,
        losses: Any = None,
        samples: int | None = None,
        times: Mapping[str, float] | None = None,
    ) -> Tree: ...

    def step(
        self,
        update_outputs: Any = None,
        *,
        steps: int | None = None,
        batch: Any = None,
        losses: Any = None,
        samples: int | None = None,
        ends_update: bool | None = None,
        ends_epoch: bool | None = None,
        times: Mapping[str, float] | None = None,
    ) -> Any:
        """Count and track one accumulation step, as `noether_core.run.Run.step` does, or what a compiled function tracked.

        For that, `update_outputs` is what a function that calls `track` returned, alone or in a pytree, such as the state of
        an optimizer, and `steps` is how many accumulation steps it made; what the next call is to carry is returned: take it.
        Of one accumulation step, losses are handed to the hooks likewise. Where Ctrl-C interrupts it, `tracked` is what the
        next call is to carry, if the steps are counted.
        """
        tracked, self._path = find_tracked(update_outputs, self._path)  # which is a hint
        if tracked is None:
            super().step(
                update_outputs,
                steps=steps,
                batch=batch,
                losses=losses,
                samples=samples,
                ends_update=ends_update,
                ends_epoch=ends_epoch,
                times=times,
            )
            return None
        with self.interrupts.lock:
            fused, steps = self._used("step", tracked), 1 if steps is None else steps
            self._refuse_unless_tracking()
            fused.check_step(tracked, steps)
            fused.refuse(steps, losses=losses, samples=samples, ends_update=ends_update, ends_epoch=ends_epoch)
            with self.interrupts, self._unless_refused(samples, times, steps):
                new = fused.step(tracked, steps, batch, losses)
        return update_outputs if new is tracked else put_tracked(update_outputs, new)

    def _refuse_unless_tracking(self) -> None:
        if self._evaluation is not None:
            raise HookOrderError(
                "run.step got what run.track returned within run.evaluate, whose steps are no training steps; give it the"
                " update outputs of the evaluation"
            )
        self._refuse_unless_training()
