"""Track what a LightningModule's `training_step` returns.

trainer = Trainer(callbacks=[TrackOutputs([{"every_n_updates": 10, "patterns": ["loss"]}], "runs/mine")])
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Unpack

from noether_core.callbacks import CallbackBase
from noether_core.callbacks.build import Callbacks, Keys, build_callback, counts_samples, read_callbacks
from noether_core.config.loop import OnlineLossCallbackConfig
from noether_core.dependencies import needing
from noether_core.emit.files import checked_path
from noether_core.emit.log_writer import LogWriter
from noether_core.errors import NoetherError
from noether_core.schedule import TrainingIteration, UpdateCounter
from noether_torch.checkpoints import for_checkpoint, load_state_of_all, own_state, state_of_all
from noether_torch.trainer import TrainerLog
from noether_torch.trainer_run import RunOptions, TrainerRun, checked_options
from noether_torch.used_rates import with_source

with needing("noether_torch.lightning", "lightning"):
    from lightning.pytorch import Callback, LightningModule, Trainer

from noether_torch.lightning_batches import BatchSize, SampleCount, checked_batch_size, losses_of, named_outputs
from noether_torch.lightning_trainer import (
    Epochs,
    StepRates,
    WholeLoss,
    earlier,
    estimated_end,
    knows_last_batch,
    replicas,
)

STATES = "noether_torch.TrackOutputs"  # where a checkpoint has them


class TrackOutputs(Callback):
    """Track each training batch's outputs: all that `training_step` returns, and the loss under `loss`.

    A batch is an accumulation step. An update is a batch in which an optimizer stepped, however many did. An epoch ends where
    Lightning ends it; one that is cut short, because training stops, is not counted. The loss is the one that
    `training_step` returned, not its share that Lightning hands to callbacks while it accumulates gradients; it, and each other
    number whose name ends in `loss`, are the losses for `OnlineLossCallback`. What `validation_step` returns, and what
    is logged by `self.log` in a validation, goes under `eval/`; see `Run.evaluate`.

    `MetricEarlyStopCallback` sets the trainer's `should_stop`. `LearningRateCallback` without `key` and `source` logs the rates
    that the optimizers' steps used. The interval under way is part of Lightning's checkpoints, as tensors, numbers and strings.
    Nothing of the module's is replaced, and this callback can be pickled and copied at any time; a copy has no run. Of several
    processes each tracks its own batches, and the numbers are of all; what a validation logs by `self.log` is the first's.

    Args:
        keys, callbacks, every, log_as: what to track, as for `Run`: by default the mean of every single number.
        path: the run directory; None: `noether` in the trainer's log directory (a second such callback's: `noether_1`).
        batch_size: the samples of a batch in this process, or a function of the batch that returns them; None: the first
            dimension that all its arrays have in common, added up over the loaders where there are several.
        trainer_loggers: whether the trainer's loggers get what is logged too, with the update as the step.
        **options: `time_limit`, `durability` and `flight_recorder`, as for `Run`.

    Raises:
        NoetherError, pydantic.ValidationError: if a config or an argument cannot work.

    Attributes:
        run: the `Run` under way or ended; None before training.
    """

    def __init__(
        self,
        keys: Keys | None = None,
        path: str | Path | None = None,
        *,
        callbacks: Callbacks | None = None,
        every: int | None = None,
        log_as: str | None = None,
        batch_size: BatchSize | None = None,
        trainer_loggers: bool = True,
        **options: Unpack[RunOptions],
    ) -> None:
        self.run: TrainerRun | None = None
        self._callbacks = read_callbacks(keys, callbacks, every=every, log_as=log_as)
        built = [  # here, so that what cannot be is refused
            build_callback(each, TrainerRun.callback_classes, LogWriter(update_counter=UpdateCounter()), Path())
            for each in with_source(self._callbacks, StepRates(()))
        ]
        self._wants_losses = any(isinstance(each, OnlineLossCallbackConfig | CallbackBase) for each in self._callbacks)
        self._counts_samples = next((str(callback) for callback in built if counts_samples(callback)), None)
        self._path = None if path is None else checked_path(path, "TrackOutputs")
        self._trainer_loggers = trainer_loggers
        self._batch_size = checked_batch_size(batch_size)
        self._options = checked_options(type(self), options)
        self._is_tracking = False
        self._state: dict[str, Any] = {}  # to go on from: of a checkpoint, or of the training that ended last
        self._global_step, self._evaluated_at = 0, -1  # the update of the newest validation
        self._reset()

    def _reset(self) -> None:
        self._epochs: Epochs | None = None
        self._losses: WholeLoss | None = None
        self._rates: StepRates | None = None
        self._samples: SampleCount | None = None
        self._evaluating: AbstractContextManager[None] | None = None
        self._metrics: dict[str, Any] = {}  # of the trainer, as they were before the validation under way

    def __getstate__(self) -> dict[str, Any]:
        """Return a callback that has no run, and goes on from where this one is."""
        copy = type(self).__new__(type(self))
        vars(copy).update(vars(self), run=None, _is_tracking=False, _state=self._current_state())
        copy._reset()
        return vars(copy)

    # ------------------------------------------------------------------ checkpoints

    def _current_state(self, state_of: Callable[[TrainerRun], dict[str, Any]] = own_state) -> dict[str, Any]:
        if not self._is_tracking:
            return self._state
        assert self.run is not None
        assert self._epochs is not None
        return {"run": state_of(self.run), "epochs": self._epochs.state()}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the interval under way into a checkpoint, by this callback's number among those of its kind."""
        state = self._current_state(state_of_all)
        if state and trainer.is_global_zero:
            state = {**state, "run": for_checkpoint(state["run"])}
        checkpoint.setdefault(STATES, {})[str(self._place(trainer))] = state

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Go on from what `on_save_checkpoint` put there: when training starts, or now if it is under way."""
        self._state = checkpoint.get(STATES, {}).get(str(self._place(trainer)), {})
        if self._is_tracking and self._state:
            self._go_on()

    def _place(self, trainer: Trainer) -> int:
        same = [each for each in getattr(trainer, "callbacks", []) if isinstance(each, TrackOutputs)]
        return next((at for at, each in enumerate(same) if each is self), 0)

    def _go_on(self) -> None:
        assert self.run is not None
        assert self._epochs is not None
        load_state_of_all(self.run, self._state["run"])
        self._epochs.load(self._state["epochs"])

    # ------------------------------------------------------------------ training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the run, at the trainer's step, or where the checkpoint left it.

        Raises:
            NoetherError: if the checkpoint was made with other callbacks, or two of these have one directory.
        """
        goes_on = trainer.fit_loop.total_batch_idx >= 0  # from a checkpoint, or after an earlier fit
        self._rates = StepRates(trainer.optimizers)
        self._samples = SampleCount(self._batch_size, replicas(trainer), self._counts_samples)
        run = self.run = TrainerRun(
            self._directory(trainer),
            with_source(self._callbacks, self._rates),
            accumulation_steps=trainer.accumulate_grad_batches,
            start=earlier(trainer, self._samples) if goes_on and not self._state else None,
            trackers=[TrainerLog(logger.log_metrics) for logger in trainer.loggers if self._trainer_loggers],
            **self._options,
        )
        end = estimated_end(trainer)
        run.counter.end_iteration = None if end is None else TrainingIteration(update=end)  # which is for display only
        run.start()
        self._epochs = Epochs(run)
        if goes_on and self._state:
            self._go_on()
        self._state, self._is_tracking = {}, True
        self._global_step, self._evaluated_at = trainer.global_step, -1
        if pl_module.automatic_optimization:
            self._losses = WholeLoss.watch(trainer)
        self._stop_if_asked(trainer)

    def _directory(self, trainer: Trainer) -> Path:
        place = self._place(trainer)
        name = f"noether_{place}" if place else "noether"
        path = Path(self._path or Path(trainer.log_dir or trainer.default_root_dir) / name)
        for other in getattr(trainer, "callbacks", []):
            is_other = isinstance(other, TrackOutputs) and other is not self and other._is_tracking
            if is_other and other.run is not None and other.run.path.resolve() == path.resolve():
                raise NoetherError(
                    f"two TrackOutputs of one trainer have the run directory {str(path)!r}; give each its own"
                )
        return path

    def _stop_if_asked(self, trainer: Trainer) -> None:
        assert self.run is not None
        if any(callback.should_stop for callback in self.run.callbacks):
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch that was cut short before this training, if that does not go on with it."""
        assert self._epochs is not None
        if self._epochs.is_under_way and trainer.current_epoch > self._epochs.count:
            self._epochs.end()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        """Note the learning rates that the step uses."""
        if self._rates is not None:
            self._rates.note(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Track the batch's outputs, and end the update if an optimizer stepped.

        Raises:
            NoetherError: see `Run.step`; or if something counts samples and the batch does not say how many it held.
        """
        assert self.run is not None
        assert self._samples is not None
        assert self._epochs is not None
        update_outputs = named_outputs(outputs)
        if self._losses is not None and self._losses.is_divided and "loss" in update_outputs:
            update_outputs["loss"] = self._losses.loss
        before, self._global_step = self._global_step, trainer.global_step
        self.run.accumulation_steps = trainer.accumulate_grad_batches  # a schedule may have changed it
        self._epochs.step(
            update_outputs or None,
            batch=batch,
            losses=losses_of(update_outputs) if self._wants_losses else None,
            samples=self._samples.of_batch(batch, trainer.train_dataloader),
            ends_update=self._global_step != before,
            is_last=knows_last_batch(trainer),
        )
        self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the epoch, if that was not known at its last batch; one that is cut short goes on to be under way."""
        assert self._epochs is not None
        is_cut = trainer.fit_loop.epoch_loop.done and not knows_last_batch(trainer)
        if self._epochs.is_under_way and not is_cut:
            self._epochs.end()
            self._stop_if_asked(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run; a checkpoint saved from here on still holds the interval under way."""
        self._end(trainer, state_of_all)

    def _end(
        self, trainer: Trainer, state_of: Callable[[TrainerRun], dict[str, Any]], error: BaseException | None = None
    ) -> None:
        WholeLoss.forget(trainer)
        if self._is_tracking:
            self._state, self._is_tracking = self._current_state(state_of), False
        if self.run is not None:
            self.run.end(error)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the run, so that what it tracked is not lost; an evaluation under way is."""
        evaluating, self._evaluating = self._evaluating, None
        try:
            if evaluating is not None:
                evaluating.__exit__(type(exception), exception, exception.__traceback__)
            self._end(trainer, own_state, exception)
        except Exception as second:  # the training's own error is the one to see
            exception.add_note(f"while ending the run, this was raised too: {second!r}")

    # ------------------------------------------------------------------ validation

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate from here on, unless these weights were evaluated already: one update has one evaluation."""
        if self._is_tracking and self.run is not None and self._evaluated_at != self.run.counter.update:
            self._evaluated_at = self.run.counter.update
            self._metrics = dict(trainer.callback_metrics)
            self._evaluating = self.run.evaluate()
            self._evaluating.__enter__()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Track the batch's outputs; those of several loaders are reduced together."""
        if self._evaluating is not None:
            assert self.run is not None
            update_outputs = named_outputs(outputs)
            self.run.step(update_outputs or None, losses=losses_of(update_outputs))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was tracked, and what the validation logged by `self.log`."""
        evaluating, self._evaluating = self._evaluating, None
        if evaluating is not None:
            assert self.run is not None
            assert self.run._evaluation is not None
            before, self._metrics = self._metrics, {}
            new = {name: value for name, value in trainer.callback_metrics.items() if before.get(name) is not value}
            self.run._evaluation.give_way(self.run.of_main(new))
            evaluating.__exit__(None, None, None)
            self._stop_if_asked(trainer)
