"""Track several losses, or whatever `compute_loss` computes, in a transformers `Trainer`.

class MyTrainer(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        ...
        record(self, {"span_loss": span_loss, "order_loss": order_loss})

trainer = MyTrainer(..., callbacks=[TrackOutputs([{"every_n_updates": 10, "patterns": ["_loss"]}])])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from noether_core.config.load import load_callbacks, parse_callback
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import MissingDependencyError, NoetherError, UpdateOutputError
from noether_core.select import flatten
from noether_torch.callbacks import Run
from noether_torch.trainer import TrainerLog, as_arrays, as_json

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.trainer_callback import ExportableState
except ImportError as error:
    raise MissingDependencyError(
        "noether_torch.transformers needs transformers: pip install 'noether-callbacks[transformers]'"
    ) from error

if TYPE_CHECKING:
    from transformers import Trainer


def record(trainer: Trainer, update_outputs: Mapping[str, Any]) -> None:
    """Hand this micro-batch's update outputs to the trainer's `TrackOutputs`; call it in `compute_loss`.

    An evaluation calls `compute_loss` too: outside of training steps nothing is recorded.

    Args:
        trainer: the trainer, in its own methods `self`.
        update_outputs: a dict from names to scalars or arrays, nested dicts allowed; their values are taken now. Several calls
            in one micro-batch add up to one dict.

    Raises:
        NoetherError: if the trainer has no `TrackOutputs` among its callbacks.
        UpdateOutputError: if a name is recorded twice in one micro-batch, or the outputs are no dict.
    """
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TrackOutputs):
            callback._record(trainer, update_outputs)
            return
    raise NoetherError(
        "record was called for a trainer without TrackOutputs; give it one: Trainer(..., callbacks=[TrackOutputs(...)])"
    )


class TrackOutputs(TrainerCallback, ExportableState):
    """Track what `record` is given, micro-batch by micro-batch, whatever the trainer divides the loss by.

    What is logged goes into the trainer's own log too, and so to all it reports to. The interval under way is part of
    `trainer_state.json`.

    Args:
        callbacks: a YAML file with a `callbacks:` list, or configs.
        path: the run directory; None: `noether` in the trainer's output directory.

    Attributes:
        run: the `Run` under way or ended; None before training.

    Raises:
        NoetherError, pydantic.ValidationError: if a config cannot work.
    """

    def __init__(
        self,
        callbacks: str | Path | Sequence[TrackAdditionalOutputsCallbackConfig | Mapping[str, Any]],
        path: str | Path | None = None,
    ) -> None:
        self.run: Run | None = None
        self._configs = (
            load_callbacks(callbacks)
            if isinstance(callbacks, str | Path)
            else [parse_callback(each, f"callbacks[{at}]") for at, each in enumerate(callbacks)]
        )
        self._path = path
        self._trainer: Trainer | None = None
        self._recorded: dict[str, Any] | None = None  # of this micro-batch; None outside of an update

    def state(self) -> dict[str, Any]:
        """Return what `trainer_state.json` holds: how to build this callback, and the interval under way."""
        return {
            "args": {
                "callbacks": [config.model_dump(mode="json", exclude_unset=True) for config in self._configs],
                "path": None if self._path is None else str(self._path),
            },
            "attributes": {},
            "run": None if self.run is None else as_json(self.run.state_dict()),
        }

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **named: Any) -> None:
        """Start the run, at the trainer's step, or where the checkpoint left it.

        Raises:
            NoetherError: if a config cannot work, or the checkpoint was made with other callbacks.
        """
        self._trainer = None  # what a training that was cut off has left to emit is no part of this one's log
        self.on_train_end()
        self._recorded = None
        states: dict[str, Any] = state.stateful_callbacks  # type: ignore[assignment] # so the trainer keeps them
        saved = states.setdefault(type(self).__name__, {}).get("run") if state.global_step else None
        accumulation_steps = args.gradient_accumulation_steps
        batch_size = (state.train_batch_size or args.train_batch_size) * args.world_size
        # of an iterable data set -1: the trainer counts no epochs
        batches = length_hint(named.get("train_dataloader"), -1)
        self.run = Run(
            Path(str(args.output_dir)) / "noether" if self._path is None else self._path,
            self._configs,
            updates_per_epoch=None if batches < 0 else max(1, -(-batches // accumulation_steps)),
            effective_batch_size=batch_size * accumulation_steps,
            accumulation_steps=accumulation_steps,
            start={"update": state.global_step} if state.global_step and saved is None else None,
            end={"update": state.max_steps},
            trackers=[TrainerLog(self._to_trainer)],
        )
        self.run.start()
        if saved is not None:
            self.run.load_state_dict(as_arrays(saved))

    def on_step_begin(self, *_: Any, **named: Any) -> None:
        """Listen to `record` from here on: this update's micro-batches come now."""
        self._recorded = {}

    def _record(self, trainer: Trainer, update_outputs: Mapping[str, Any]) -> None:
        if self._recorded is None:
            return
        self._trainer = trainer
        for key, value in flatten(update_outputs).items():
            if key in self._recorded:
                raise UpdateOutputError(
                    f"update output {key!r} was recorded twice in one micro-batch; record each name once, or under another name"
                )
            self._recorded[key] = value.detach().clone() if isinstance(value, torch.Tensor) else value

    def on_substep_end(self, *_: Any, **named: Any) -> None:
        """Track a micro-batch that ends no update."""
        self._step(ends_update=False)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **named: Any) -> None:
        """Track an update's last micro-batch, and end the update."""
        should_log = control.should_log
        has_epochs = self.run is not None and self.run.counter.updates_per_epoch is not None
        self._step(ends_update=True, ends_epoch=has_epochs and float(state.epoch or 0).is_integer())
        control.should_log = should_log  # which `trainer.log` has turned off

    def _step(self, ends_update: bool, ends_epoch: bool = False) -> None:
        recorded, self._recorded = self._recorded, None if ends_update else {}
        assert self.run is not None
        self.run.step(recorded or None, ends_update=ends_update, ends_epoch=ends_epoch)

    def on_train_end(self, *_: Any, **named: Any) -> None:
        """End the run."""
        if self.run is not None:
            self.run.finish()
        self._trainer = None

    def _to_trainer(self, numbers: dict[str, Any], _: int) -> None:
        if self._trainer is not None:
            self._trainer.log(numbers)
