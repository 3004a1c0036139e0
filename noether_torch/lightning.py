"""Track what a LightningModule's `training_step` returns.

trainer = Trainer(callbacks=[TrackOutputs([{"every_n_updates": 10, "patterns": ["loss"]}], "runs/mine")])
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from noether_core.callbacks.build import Callbacks
from noether_core.errors import MissingDependencyError, NoetherError
from noether_torch.callbacks import Run
from noether_torch.trainer import TrainerLog, as_arrays, as_tensors

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import GradientAccumulationScheduler
except ImportError as error:
    raise MissingDependencyError(
        "noether_torch.lightning needs lightning: pip install 'noether-callbacks[lightning]'"
    ) from error


class TrackOutputs(Callback):
    """Track each training batch's outputs: all that `training_step` returns, and the loss under `loss`.

    A batch is an accumulation step. An update ends where Lightning's `global_step` moves, so also at an epoch's last batch;
    with several optimizers stepped by hand, the batch that moves it is one update. The loss is the one that `training_step`
    returned, not its share that Lightning hands to callbacks while it accumulates gradients. The interval under way is part of
    Lightning's checkpoints, as tensors.

    Args:
        callbacks: a YAML file with a `callbacks:` list, or configs.
        path: the run directory; None: `noether` in the trainer's log directory.
        effective_batch_size: the samples of an update; None: the train dataloader's batch size, times the accumulated
            batches, times the processes.
        trainer_loggers: whether the trainer's loggers get what is logged too, with the update as the step.

    Attributes:
        run: the `Run` under way or ended; None before training.
        state_key: the name of this callback's state in a checkpoint.
    """

    state_key = "noether_torch.TrackOutputs"

    def __init__(
        self,
        callbacks: Callbacks,
        path: str | Path | None = None,
        *,
        effective_batch_size: int | None = None,
        trainer_loggers: bool = True,
    ) -> None:
        self.run: Run | None = None
        self._callbacks = callbacks
        self._path = path
        self._effective_batch_size = effective_batch_size
        self._trainer_loggers = trainer_loggers
        # what to go on from: of a checkpoint, or of the training that ended last; None while one is under way
        self._state: dict[str, Any] | None = {}
        self._loss: Any = None
        self._global_step = 0
        self._watching = ExitStack()

    def state_dict(self) -> dict[str, Any]:
        """Return the interval under way, as tensors, numbers and strings."""
        if self._state is not None:
            return self._state
        assert self.run is not None
        return dict(as_tensors(self.run.state_dict()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep what `state_dict` returned, until training starts."""
        self._state = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the run, at the trainer's step.

        Raises:
            NoetherError: if a config cannot work, or the checkpoint was made with other callbacks.
        """
        goes_on = trainer.fit_loop.total_batch_idx >= 0  # from a checkpoint, or after an earlier fit
        root = Path(trainer.log_dir or trainer.default_root_dir) / "noether" if self._path is None else self._path
        run = self.run = Run(
            root,
            self._callbacks,
            updates_per_epoch=_updates_per_epoch(trainer),
            effective_batch_size=self._effective_batch_size or _effective_batch_size(trainer),
            accumulation_steps=trainer.accumulate_grad_batches,
            start={"update": trainer.global_step} if goes_on and not self._state else None,
            end=_end(trainer),
            trackers=[TrainerLog(logger.log_metrics) for logger in trainer.loggers if self._trainer_loggers],
        )
        run.start()
        if goes_on and self._state:
            run.load_state_dict(as_arrays(self._state))
        self._state = None
        self._global_step = trainer.global_step
        self._watch(pl_module)

    def _watch(self, pl_module: LightningModule) -> None:
        """Note each loss as `training_step` returns it: the hooks get it divided, which rounds."""
        original, attributes = pl_module.training_step, vars(pl_module)
        own = {name: value for name, value in attributes.items() if name == "training_step"}

        def training_step(*arguments: Any, **named: Any) -> Any:
            output = original(*arguments, **named)
            loss = output.get("loss") if isinstance(output, Mapping) else output
            self._loss = loss.detach() if isinstance(loss, Tensor) else loss
            return output

        # Lightning looks here for the parameters' names
        training_step.__wrapped__ = getattr(original, "__wrapped__", original)  # type: ignore[attr-defined]
        attributes["training_step"] = training_step
        self._watching.callback(attributes.update, own)
        self._watching.callback(attributes.pop, "training_step")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Track the batch's outputs, and end the update if the optimizer stepped."""
        loss, self._loss = self._loss, None
        ended = trainer.global_step != self._global_step
        self._global_step = trainer.global_step
        update_outputs = dict(outputs) if isinstance(outputs, Mapping) else {}
        if loss is not None:
            update_outputs["loss"] = loss
        is_last = trainer.is_last_batch or batch_idx + 1 == trainer.num_training_batches
        assert self.run is not None
        self.run.step(
            update_outputs or None,
            batch=batch,
            ends_update=ended,
            ends_epoch=self.run.counter.epoch < trainer.current_epoch + is_last,
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the run; a checkpoint saved from here on still holds the interval under way."""
        self._watching.close()
        if self.run is not None and self._state is None:
            self._state = self.state_dict()
            self.run.finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """End the run, so that what it tracked is not lost."""
        try:
            self.on_train_end(trainer, pl_module)
        except Exception as second:  # the training's own error is the one to see
            exception.add_note(f"while ending the run, this was raised too: {second!r}")


def _updates_per_epoch(trainer: Trainer) -> int | None:
    batches = trainer.num_training_batches
    return None if math.isinf(batches) else max(1, math.ceil(batches / trainer.accumulate_grad_batches))


def _end(trainer: Trainer) -> dict[str, int] | None:
    """Return the update at which Lightning stops, where it is known before."""
    # mypy does not see the attribute, which a connector sets
    varies = any(isinstance(callback, GradientAccumulationScheduler) for callback in getattr(trainer, "callbacks", []))
    if varies or not trainer.lightning_module.automatic_optimization:
        return None
    updates = trainer.estimated_stepping_batches
    return {"update": int(updates)} if 0 <= updates < math.inf else None


def _effective_batch_size(trainer: Trainer) -> int:
    size = getattr(trainer.train_dataloader, "batch_size", None)
    if not isinstance(size, int):
        raise NoetherError(
            f"the train dataloader is {type(trainer.train_dataloader).__name__} with batch_size={size!r}, so the samples of an"
            " update are not known; give TrackOutputs(effective_batch_size=...)"
        )
    return size * trainer.accumulate_grad_batches * trainer.world_size
