"""Read of a Lightning trainer what its hooks do not hand over: the whole loss, the rates that a step used, where it ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor

from noether_core.schedule import TrainingIteration
from noether_torch.lightning_batches import SampleCount
from noether_torch.trainer_run import TrainerRun
from noether_torch.used_rates import rates_of


class WholeLoss:
    """Keep each loss as `training_step` returned it: the hooks get it divided by the batches of an update, which rounds.

    It stands in Lightning's loop for the class that divides, and hands everything on to that; the module stays as it is.

    Attributes:
        is_divided: whether the newest batch's loss was.
        loss: the newest that was, before it was; None if the batch had none.
    """

    def __init__(self, divides: Any) -> None:
        self._divides = divides
        self.is_divided = False
        self.loss: Tensor | None = None

    @classmethod
    def watch(cls, trainer: Trainer) -> WholeLoss:
        """Return what keeps the trainer's losses, for all who ask."""
        loop: Any = trainer.fit_loop.epoch_loop.automatic_optimization
        watching = loop.output_result_cls
        if not isinstance(watching, cls):
            watching = loop.output_result_cls = cls(watching)
        return watching

    @classmethod
    def forget(cls, trainer: Trainer) -> None:
        """Put back what `watch` replaced."""
        loop: Any = trainer.fit_loop.epoch_loop.automatic_optimization
        if isinstance(loop.output_result_cls, cls):
            divides = loop.output_result_cls._divides
            del loop.output_result_cls
            if loop.output_result_cls is not divides:  # it was not the class's own
                loop.output_result_cls = divides

    def from_training_step_output(self, training_step_output: Any, normalize: int = 1) -> Any:
        """Do as the class that divides does, and keep the loss."""
        result = self._divides.from_training_step_output(training_step_output, normalize)
        self.is_divided = normalize != 1
        if self.is_divided:
            output = training_step_output
            loss = output.get("loss") if isinstance(output, Mapping) else output
            self.loss = loss.detach().clone() if isinstance(loss, Tensor) else None
        return result


class StepRates:
    """Know the learning rates that each optimizer's newest step used, whatever a scheduler has set since.

    Of one optimizer, they have the names of its parameter groups; of several, each is named by the optimizer's number first.
    """

    def __init__(self, optimizers: Sequence[Any]) -> None:
        self._optimizers = list(optimizers)
        self._rates = [rates_of(optimizer) for optimizer in optimizers]

    def note(self, optimizer: Any) -> None:
        """Note the rates of an optimizer that is about to step."""
        for at, each in enumerate(self._optimizers):
            if each is optimizer:
                self._rates[at] = rates_of(optimizer)

    def __call__(self, update: int) -> dict[str, Any]:
        """Return the rates; see `LearningRateCallbackConfig.source`."""
        if len(self._rates) == 1:
            return self._rates[0]
        return {
            f"{at}{name and '/'}{name}": rate for at, rates in enumerate(self._rates) for name, rate in rates.items()
        }


class Epochs:
    """Tell a run where the trainer's epochs end.

    An epoch in which no optimizer stepped has no update of its own to end at: it ends with the next one.

    Attributes:
        is_under_way: whether there were batches since the last epoch's end.
    """

    def __init__(self, run: TrainerRun) -> None:
        self._run = run
        self.is_under_way = False
        self._ended_at = -1  # the update
        self._waiting = 0  # epochs that end with the next one

    @property
    def count(self) -> int:
        """Return how many have ended."""
        return self._run.counter.epoch + self._waiting

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs."""
        return {"is_under_way": self.is_under_way, "ended_at": self._ended_at, "waiting": self._waiting}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.is_under_way, self._ended_at, self._waiting = state["is_under_way"], state["ended_at"], state["waiting"]

    def step(self, *arguments: Any, ends_update: bool, is_last: bool, **named: Any) -> None:
        """Let the run track a batch; if it is the epoch's last, that ends too."""
        at_once = is_last and ends_update and not self._waiting
        self._run.step(*arguments, ends_update=ends_update, ends_epoch=at_once, **named)
        self.is_under_way = not at_once
        if at_once:
            self._ended_at = self._run.counter.update
        elif is_last:
            self.end()

    def end(self) -> None:
        """End the epoch under way."""
        self.is_under_way = False
        counter = self._run.counter
        if counter.update == self._ended_at:
            self._waiting += 1
            return
        counter.epoch += self._waiting
        self._ended_at, self._waiting = counter.update, 0
        self._run.end_epoch()


def estimated_end(trainer: Trainer) -> int | None:
    """Return the update at which training will end, if it goes as the data's length says; None if there is no telling."""
    # mypy does not see the attribute, which a connector sets
    varies = any(isinstance(callback, GradientAccumulationScheduler) for callback in getattr(trainer, "callbacks", []))
    if varies or not trainer.lightning_module.automatic_optimization:
        return None
    updates = trainer.estimated_stepping_batches
    return int(updates) if 0 <= updates < math.inf else None


def replicas(trainer: Trainer) -> int:
    """Return how many processes, or groups of them that hold a model together, have a batch of their own each."""
    told = getattr(trainer.strategy, "distributed_sampler_kwargs", None) or {}
    return int(told.get("num_replicas") or trainer.world_size)


def knows_last_batch(trainer: Trainer) -> bool:
    """Tell whether the trainer knows of the batch under way, or the newest, that its epoch has no more."""
    return trainer.is_last_batch or trainer.fit_loop.batch_idx + 1 >= trainer.num_training_batches


def earlier(trainer: Trainer, samples: SampleCount) -> TrainingIteration:
    """Return how far the trainer was before the first batch to come, if others tracked what was before.

    Of several optimizers stepped by hand Lightning counts each step, but an update is a batch: there are no more updates
    than batches.
    """
    loop = trainer.fit_loop
    epochs: Any = loop.epoch_progress.current
    batches = loop.total_batch_idx + 1
    held = samples.of_earlier(batches, trainer.train_dataloader)
    return TrainingIteration(epochs.processed, min(trainer.global_step, batches), held)
