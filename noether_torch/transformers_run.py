"""Track one training of a transformers `Trainer`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from noether_core.callbacks import CallbackBase
from noether_core.callbacks.build import tracking_callbacks
from noether_core.callbacks.derived import DerivedOutputsCallback
from noether_core.callbacks.evaluation import Evaluation
from noether_core.callbacks.track_outputs import TrackAdditionalOutputsCallback
from noether_core.config.base import NamedCallbackConfig
from noether_core.errors import NoetherError, NonFiniteError
from noether_core.scalars import is_scalar
from noether_torch.loaders import IteratedLoader, is_exhausted, refuse_unknown_samples, samples_of_batch
from noether_torch.recorded import MicroBatch
from noether_torch.trainer_run import TrainerRun

logger = logging.getLogger(__name__)

_NO_METRICS = frozenset({"epoch", "step", "num_input_tokens_seen"})  # which `Trainer.log` adds to them


class TransformersRun(TrainerRun):
    """Turn the trainer's events into steps, epochs' ends and evaluations.

    Args:
        path, callbacks: as for `noether_torch.Run`.
        loader: the trainer's dataloader.
        batch_size: the samples of a micro-batch, where nothing better is known and nothing counts them.
        **arguments: as for `noether_torch.Run`.

    Attributes:
        micro_batch: what is recorded of the one under way; None outside of updates.
        is_in_epoch: whether an update came since the last epoch's end.
        trainers_own: the log keys, while these are logged, of what the trainer logs itself.
    """

    def __init__(self, path: Any, callbacks: Any, *, loader: Any, batch_size: int, **arguments: Any) -> None:
        steps = arguments.get("accumulation_steps", 1)
        super().__init__(path, callbacks, effective_batch_size=batch_size * steps, **arguments)
        self._given = {"callbacks": callbacks, "loader": loader, "batch_size": batch_size, **arguments}
        self.micro_batch: MicroBatch | None = None
        self.is_in_epoch = False
        self.trainers_own: frozenset[str] = frozenset()
        self._loader = IteratedLoader(loader)
        self._batch_size = batch_size
        self._evaluated: Evaluation | None = None
        self._evaluated_batch = MicroBatch()
        self._tracked: dict[str, bool] = {}
        self._takes_scalars = any(each.config.scalars for each in tracking_callbacks(self.callbacks))

    # ------------------------------------------------------------------ what is recorded

    def record(self, update_outputs: Any, losses: Any, samples: Any, is_evaluation: bool) -> None:
        """Take what was recorded, of a training's micro-batch or of an evaluation's."""
        is_evaluation = is_evaluation or self.micro_batch is None
        batch = self._evaluated_batch if is_evaluation or self.micro_batch is None else self.micro_batch
        batch.add(update_outputs, losses, samples, self._is_tracked)

    def _is_tracked(self, name: str, value: Any) -> bool:
        if name not in self._tracked:
            self._tracked[name] = any(_names(callback, name) for callback in self.callbacks)
        return self._tracked[name] or (self._takes_scalars and is_scalar(value))

    # ------------------------------------------------------------------ training

    def begin_update(self) -> None:
        """Listen to `record`: an update's micro-batches come now. What an evaluation that was cut off has left is dropped."""
        self.micro_batch = MicroBatch()
        self._loader.look()
        self._evaluated, self._evaluated_batch = None, MicroBatch()
        if self.counter.is_finished:  # the trainer goes on all the same
            self.counter.end_iteration = None

    def end_micro_batch(
        self, *, ends_update: bool, is_trainers_epoch: bool = False, is_last_fetched: bool = False
    ) -> None:
        """Track the micro-batch under way.

        Args:
            ends_update: whether the optimizer has stepped.
            is_trainers_epoch: whether the trainer counts a whole epoch now.
            is_last_fetched: whether it is the last of those that the loader has given.

        Raises:
            NoetherError: see `Run.step`; for samples that are counted and not known.
        """
        batch, self.micro_batch = self.micro_batch or MicroBatch(), None if ends_update else MicroBatch()
        loader = self._loader.look()
        is_last = is_last_fetched and (is_exhausted(loader) or is_trainers_epoch)
        self.step(
            batch.outputs or None,
            losses=batch.losses,
            samples=self._samples_of(batch, loader, is_last),
            ends_update=ends_update,
            ends_epoch=ends_update and is_last,
        )
        if ends_update:
            self.is_in_epoch = not is_last

    def _samples_of(self, batch: MicroBatch, loader: Any, is_last: bool) -> int:
        if batch.samples is not None:
            return batch.samples
        known = "there is no loader" if loader is None else samples_of_batch(loader, is_last)
        if isinstance(known, int):
            return known
        advice = "Say it in compute_loss: record(self, update_outputs, samples=len(inputs['labels']))"
        refuse_unknown_samples(self.callbacks, known, advice)
        return self._batch_size

    def end_pass(self, *, is_cut_short: bool) -> None:
        """End the epoch, unless it was ended, had no update, or training stops before the data loader's end."""
        exhausted = is_exhausted(self._loader.look())
        self._loader.begin_pass()
        if self.is_in_epoch and (exhausted or not is_cut_short):
            self.is_in_epoch = False
            self.end_epoch()

    @property
    def should_stop(self) -> bool:
        """Tell whether a callback wants training to end."""
        return any(callback.should_stop for callback in self.callbacks)

    # ------------------------------------------------------------------ evaluation

    def reopened(self) -> TransformersRun:
        """Return this run, or if it has ended one that goes on from its end."""
        if self._state != "finished":
            return self
        after = TransformersRun(self.path, **{**self._given, "start": None})
        after.start()
        after.load_state_dict(self.state_dict())
        after._evaluated = self._evaluated
        return after

    def end_evaluation_step(self) -> None:
        """Track what was recorded of an evaluation's batch."""
        batch, self._evaluated_batch = self._evaluated_batch, MicroBatch()
        if batch.outputs or batch.losses is not None:
            if self._evaluated is None:
                self._evaluated = Evaluation(self.callbacks, "eval")
            self._evaluated.add([batch.outputs], batch.losses)

    def end_evaluation(self, metrics: Mapping[str, Any], prefix: str) -> None:
        """Log what the evaluation's batches gave, and its metrics, under the prefix that the trainer was told.

        Args:
            metrics: what the trainer's method returns.
            prefix: the prefix where the metrics do not tell.

        Raises:
            NonFiniteError: for values that a config with `nonfinite: raise` refuses, after all is logged.
        """
        evaluated, self._evaluated = self._evaluated, None
        if evaluated is None and self.exchange is not None:  # the others meet for what they recorded
            evaluated = Evaluation(self.callbacks, prefix)
        prefix, metrics = _strip_prefix(self.of_main(metrics), prefix)
        before = self.log_writer.current_values()
        with self.evaluate(prefix):
            try:
                if evaluated is not None:
                    evaluated.prefix = prefix
                    with _each_once(prefix):
                        evaluated.log(self.log_writer, self.counter)
            finally:
                tracked = self.log_writer.current_values().keys() - before.keys()
                named = {
                    f"trainer/{name}" if f"{prefix}/{name}" in tracked else name: metrics[name] for name in metrics
                }
                self.trainers_own = frozenset(f"{prefix}/{name}" for name in named)
                with _each_once(prefix):
                    self.log(named)
                self.trainers_own = frozenset()


@contextmanager
def _each_once(prefix: str) -> Iterator[None]:
    """Warn of what cannot be logged, such as a second evaluation of one update: training goes on without."""
    try:
        yield
    except NonFiniteError:
        raise
    except NoetherError as error:
        logger.warning(
            "some of the evaluation %r is not logged: %s. metric_key_prefix gives another prefix", prefix, error
        )


def _strip_prefix(metrics: Mapping[str, Any], prefix: str) -> tuple[str, dict[str, Any]]:
    """Return the prefix that an evaluation's metrics have, as the trainer writes it before `_runtime`, and them without it."""
    found = min((key.removesuffix("_runtime") for key in metrics if key.endswith("_runtime")), key=len, default=prefix)
    named = {key.removeprefix(f"{found}_"): value for key, value in metrics.items() if key not in _NO_METRICS}
    clean = re.sub(r"[^\w.-]", "_", found)[:100]
    is_name = re.fullmatch(r"\w[\w.-]*", clean) and not re.fullmatch(r"[EUS]\d+", clean)
    return clean if is_name else prefix, named


def _names(callback: Any, name: str) -> bool:
    """Tell whether a callback reads the update output of that name."""
    if isinstance(callback, TrackAdditionalOutputsCallback):
        patterns: Sequence[str] = callback.patterns
        return name in callback.keys or name == callback.config.weight or any(each in name for each in patterns)
    key = getattr(callback.callback_config, "key", None) if isinstance(callback, DerivedOutputsCallback) else None
    return key is not None and (name == key or name.startswith(key + "/"))


def tell_callbacks(trainer: Any, logs: Mapping[str, Any], teller: Any) -> None:
    """Give numbers to a transformers `Trainer`'s other callbacks as `Trainer.log` does, each a copy of its own."""
    handler = trainer.callback_handler
    parts = ("model", "processing_class", "optimizer", "lr_scheduler", "train_dataloader", "eval_dataloader")
    named = {part: getattr(handler, part) for part in parts}
    for callback in handler.callbacks:
        if callback is not teller:
            callback.on_log(trainer.args, trainer.state, trainer.control, logs=dict(logs), **named)


def configs_of(given: Sequence[NamedCallbackConfig | CallbackBase]) -> list[NamedCallbackConfig]:
    """Return the configs that `TrackOutputs` was given; raises `NoetherError` for a callback object."""
    configs = []
    for each in given:
        if isinstance(each, CallbackBase):
            raise NoetherError(
                f"TrackOutputs got the callback object {each}; give its config, for each training has a log of its own"
            )
        configs.append(each)
    return configs
