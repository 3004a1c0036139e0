"""Track several losses, or whatever `compute_loss` computes, in a transformers `Trainer`.

class MyTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ...
        record(self, {"span_loss": span_loss, "order_loss": order_loss})

trainer = MyTrainer(..., callbacks=[TrackOutputs(every=10)])
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch

from noether_core.callbacks.build import Callbacks, Keys, build_callback, read_callbacks
from noether_core.config.base import NamedCallbackConfig
from noether_core.dependencies import needing
from noether_core.emit.files import checked_path
from noether_core.emit.log_writer import LogWriter
from noether_core.errors import NoetherError
from noether_core.schedule import TrainingIteration, UpdateCounter
from noether_torch.checkpoints import load_state_of_all
from noether_torch.state import as_arrays, as_json
from noether_torch.trainer import TrainerLog

with needing("noether_torch.transformers", "transformers"):
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
    from transformers.trainer_utils import has_length

from noether_torch.trainer_run import RunOptions, checked_options
from noether_torch.transformers_run import TransformersRun, configs_of, tell_callbacks
from noether_torch.transformers_states import GatheredStates, forget_saved, saved_entry
from noether_torch.used_rates import UsedRates, with_source

if TYPE_CHECKING:
    from transformers import Trainer

logger = logging.getLogger(__name__)
_BEGUN = "_noether_paths"  # on the trainer's state of one training: the run directory of each that has begun, by its id


def record(
    trainer: Trainer,
    update_outputs: Mapping[str, Any] | None = None,
    *,
    losses: Any = None,
    samples: int | None = None,
) -> None:
    """Hand this micro-batch's update outputs to the trainer's `TrackOutputs`, each of them; call it in `compute_loss`.

    An evaluation calls `compute_loss` too: what is recorded in it is reduced over the evaluation. Where the trainer neither
    trains nor evaluates after a training, nothing is recorded.

    Args:
        trainer: the trainer, in its own methods `self`.
        update_outputs: a dict from names to scalars or arrays, nested dicts allowed; their values are taken now. Several calls
            in one micro-batch add up to one dict.
        losses: a scalar, or a dict of some, for `OnlineLossCallback`.
        samples: how many samples the micro-batch has, over all processes; each gives the same number. It is needed where
            something counts samples and the data loader does not tell: with a collate function or a batch sampler of your
            own, or an iterable data set with workers.

    Raises:
        NoetherError: if the trainer has no `TrackOutputs` among its callbacks.
        UpdateOutputError: if something is recorded twice in one micro-batch, or the outputs are no dict.
    """
    found = [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, TrackOutputs)]
    if not found:
        raise NoetherError(
            "record was called for a trainer without TrackOutputs; give it one: Trainer(..., callbacks=[TrackOutputs(...)])"
        )
    model = trainer.model
    is_evaluation = isinstance(model, torch.nn.Module) and not model.training and not torch.is_grad_enabled()
    for callback in found:
        callback._trainer = trainer
        if callback.run is not None:
            callback.run.record(update_outputs, losses, samples, is_evaluation)


class TrackOutputs(TrainerCallback, ExportableState):
    """Track what `record` is given, micro-batch by micro-batch, whatever the trainer divides the loss by.

    An update is an optimizer step, and epochs end where the data loader does. What is recorded in an evaluation, and the
    metrics that it returns, are logged as `eval/...`; of `predict`, as `test/...`; of another `metric_key_prefix`, under that.
    After training they belong to its last update. What is logged goes into the trainer's `log_history` and, once something is
    recorded, to its other callbacks, and so to all it reports to, without a call of `Trainer.log`. The interval under way is
    part of `trainer_state.json`, of several processes that of each. A copy of this object has its configs, and no training.

    Args:
        keys, callbacks, every, log_as: what to track, as for `Run`: by default the mean of every single number. No callback
            objects. A `LearningRateCallback` with neither `key` nor `source` reads the trainer's optimizer.
        path: the run directory; None: `noether` in the trainer's output directory, for a second one `noether_2`.
        **options: `time_limit`, `durability` and `flight_recorder`, as for `Run`.

    Attributes:
        run: the `Run` under way or ended; None before training.

    Raises:
        NoetherError, pydantic.ValidationError: if a config cannot work.
    """

    def __init__(
        self,
        keys: Keys | None = None,
        path: str | Path | None = None,
        *,
        callbacks: Callbacks | None = None,
        every: int | None = None,
        log_as: str | None = None,
        **options: Unpack[RunOptions],
    ) -> None:
        self._options = checked_options(type(self), options)
        self.run: TransformersRun | None = None
        self._configs = configs_of(read_callbacks(keys, callbacks, every=every, log_as=log_as))
        self._path = None if path is None else checked_path(path, "TrackOutputs")
        self._states = GatheredStates()
        self._number, self._rates = 0, UsedRates()  # which it is among those of its trainer
        self._trainer: Trainer | None = None
        self._state: TrainerState | None = None
        for config in self._given():  # what cannot work says so now
            build_callback(config, TransformersRun.callback_classes, LogWriter(update_counter=UpdateCounter()), Path())

    def _given(self) -> list[NamedCallbackConfig]:
        """Return the configs, with the rates that the trainer's optimizer used where one names no other source."""
        return with_source(self._configs, self._rates)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy has: the configs, and nothing of the training under way."""
        new = {"_rates": UsedRates(), "_states": GatheredStates()}
        return {**vars(self), **new, "run": None, "_trainer": None, "_state": None}

    def state(self) -> dict[str, Any]:
        """Return what `trainer_state.json` holds: how to build this callback, and the interval under way."""
        run = self.run
        return {
            "args": {
                "callbacks": [config.model_dump(mode="json", exclude_unset=True) for config in self._configs],
                "path": None if self._path is None else str(self._path),
                **self._options,
            },
            "attributes": {},
            "number": self._number,
            "is_in_epoch": run is not None and run.is_in_epoch,
            "run": None if run is None else as_json(self._states.of(run, self._state)),
        }

    # ------------------------------------------------------------------ training

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: Any = None, **named: Any) -> None:
        """Start the run, at the trainer's step, or where the checkpoint left it.

        Raises:
            NoetherError: if a config cannot work, or the checkpoint was made with other callbacks.
        """
        self._leave_behind()
        path = self._claim_path(args, state)
        saved = saved_entry(state, type(self).__name__, self._number) if state.global_step else None
        self.run = self._new_run(path, args, state, saved is None, named.get("train_dataloader"))
        self.run.start()
        if saved is not None:
            load_state_of_all(self.run, as_arrays(saved["run"]))
            self.run.is_in_epoch = bool(saved.get("is_in_epoch"))
        self._state = state
        self._rates.watch(named.get("optimizer"))

    def _leave_behind(self) -> None:
        """Close what a training that was cut off has left: the one that begins supersedes it."""
        self._trainer = self._state = None
        try:
            self.on_train_end()
        except NoetherError as error:
            logger.warning("a training that was cut off had an error at its end: %s", error)

    def _claim_path(self, args: TrainingArguments, state: TrainerState) -> Path:
        begun: dict[int, Path] = vars(state).setdefault(_BEGUN, {})
        if id(self) in begun:  # another training with the same state
            begun.clear()
        self._number = len(begun)
        path = Path(str(args.output_dir)) / "noether" if self._path is None else Path(self._path)
        if self._path is None and path in begun.values():
            path = path.with_name(f"noether_{self._number + 1}")
        if path in begun.values():
            raise NoetherError(
                f"two TrackOutputs would write the run directory {str(path)!r}; give each a path of its own"
            )
        begun[id(self)] = path
        return path

    def _new_run(
        self, path: Path, args: TrainingArguments, state: TrainerState, is_whole: bool, loader: Any
    ) -> TransformersRun:
        batch_size = (state.train_batch_size or args.train_batch_size) * args.world_size
        steps, done = args.gradient_accumulation_steps, state.global_step
        at = TrainingIteration(int(state.epoch or 0), done, done * steps * batch_size)
        return TransformersRun(
            path,
            self._given(),
            loader=loader,
            batch_size=batch_size,
            accumulation_steps=steps,
            start=at if done and is_whole else None,
            end={"update": state.max_steps},
            trackers=[TrainerLog(self._to_trainer, in_every_process=True)],
            **self._options,
        )

    def _running(self) -> TransformersRun:
        if self.run is None:
            raise NoetherError(f"{type(self).__name__} saw no training begin; give it to the trainer before train()")
        return self.run

    def on_step_begin(self, *_: Any, **named: Any) -> None:
        """Listen to `record` from here on: this update's micro-batches come now."""
        self._running().begin_update()

    def on_pre_optimizer_step(self, *_: Any, **named: Any) -> None:
        """Note the learning rates, if the optimizer cannot tell at its step."""
        self._rates.before_step(named.get("optimizer"))

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> Any:
        """Track a micro-batch that ends no update."""
        run, fetched = self._running(), getattr(self._trainer, "current_gradient_accumulation_steps", None)
        run.end_micro_batch(ends_update=False, is_last_fetched=run.accumulated + 1 == fetched)
        return self._steer(control)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> Any:
        """Track an update's last micro-batch, and end the update; also the epoch, if the data loader is at its end."""
        loader, epoch = named.get("train_dataloader"), float(state.epoch or 0)
        is_whole = loader is not None and has_length(loader) and epoch > 0 and epoch.is_integer()
        self._running().end_micro_batch(ends_update=True, is_trainers_epoch=is_whole, is_last_fetched=True)
        forget_saved(state, type(self).__name__, self._number)
        return self._steer(control, state)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> Any:
        """End the epoch, if the data loader did not say so before."""
        self._running().end_pass(is_cut_short=control.should_training_stop and not control.should_epoch_stop)
        return self._steer(control, state)

    def _steer(self, control: TrainerControl, state: Any = None, *, is_saved: bool = False) -> TrainerControl:
        if state is not None and (control.should_save or is_saved):
            self._states.gather(self.run, state)
        if self.run is not None and self.run.should_stop:
            control.should_training_stop = True
        return control

    def on_train_end(self, *_: Any, **named: Any) -> None:
        """End the run."""
        self._rates.release()
        if self.run is not None:
            self.run.finish()

    # ------------------------------------------------------------------ evaluation

    def on_prediction_step(self, *_: Any, **named: Any) -> None:
        """Track what was recorded of an evaluation's batch."""
        if self.run is not None:
            self.run.end_evaluation_step()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> Any:
        """Log an evaluation."""
        self._end_evaluation(named.get("metrics"), "eval")
        # whether it is the best one the trainer decides after this
        return self._steer(control, state, is_saved=args.save_strategy == "best")

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **named: Any
    ) -> Any:
        """Log a prediction's metrics."""
        self._end_evaluation(metrics, "test")
        return self._steer(control)

    def _end_evaluation(self, metrics: Mapping[str, Any] | None, prefix: str) -> None:
        if self.run is not None:
            before, self.run = self.run, self.run.reopened()
            try:
                self.run.end_evaluation(metrics or {}, prefix)
            finally:
                if self.run is not before:
                    self.run.finish()

    # ------------------------------------------------------------------ the trainer's log

    def _to_trainer(self, numbers: dict[str, Any], _: int) -> None:
        """Put numbers where `Trainer.log` puts its own, but not through it: whoever overrides it sees its own calls only."""
        state, run, trainer = self._state, self.run, self._trainer
        own = frozenset() if run is None else run.trainers_own
        logs = {name: number for name, number in numbers.items() if name not in own}
        if state is None or not logs:
            return
        logs |= {} if state.epoch is None else {"epoch": state.epoch}
        state.log_history.append({**logs, "step": state.global_step})
        if trainer is not None:
            tell_callbacks(trainer, logs, self)
