"""Track a loop that Accelerate runs.

with Run("runs/mine", "callbacks.yaml", accelerator=accelerator) as run:
    for batch in loader:
        with accelerator.accumulate(model):
            ...
            run.step({"loss": loss})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from noether_core.callbacks.build import Callbacks, Keys, read_callbacks
from noether_core.emit.trackers import Tracker
from noether_core.errors import NoetherError
from noether_core.interrupts import in_turn
from noether_torch import callbacks as torch_callbacks
from noether_torch.checkpoints import for_checkpoint, load_state_of_all, state_of_all
from noether_torch.loaders import is_exhausted, refuse_unknown_samples, samples_of_batch
from noether_torch.trainer import TrainerLog
from noether_torch.used_rates import UsedRates, with_source

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped] # it ships without types


class Run(torch_callbacks.Run):
    """Track a training run with the accelerator's accumulation, checkpoints and trackers.

    A call of `step` is an accumulation step; it ends the update where the accelerator syncs the gradients, so also at the
    dataloader's end. Without `updates_per_epoch`, epochs end at the end of a dataloader that the accelerator prepared (others':
    `end_epoch`). Without `effective_batch_size`, the samples are those that the dataloader's batch held, where that is known
    (elsewhere: `step(..., samples=n)`). A `LearningRateCallback` with neither `key` nor `source` logs what each step of the one
    optimizer that the accelerator prepared used.

    Of several processes each calls `step` with its own outputs, and the numbers are of all; `samples` are those of all too.
    `accelerator.save_state` holds the interval under way, each process's, as tensors; `accelerator.load_state` may come before
    the `with` block, in it or after it, and logs nothing. What is logged goes to `accelerator.log` too, with the update as its
    step.

    Args:
        path, keys, callbacks, every, log_as, trackers: as for `noether_torch.Run`; the accelerator's own trackers come
            beside these.
        accelerator: the `accelerate.Accelerator`.
        **arguments: of `noether_torch.Run`, but `accumulation_steps`, which the accelerator has.
    """

    def __init__(
        self,
        path: str | Path,
        keys: Keys | None = None,
        callbacks: Callbacks | None = None,
        *,
        accelerator: Accelerator,
        every: int | None = None,
        log_as: str | None = None,
        trackers: Sequence[Tracker | str] = (),
        **arguments: Any,
    ) -> None:
        if not hasattr(accelerator, "sync_gradients"):
            raise NoetherError(f"Run got accelerator={accelerator!r:.80}; expected an accelerate.Accelerator")
        if "accumulation_steps" in arguments:
            raise NoetherError(
                "Run got accumulation_steps; the accelerator decides that: Accelerator(gradient_accumulation_steps=...)"
            )
        self._accelerator = accelerator
        self._rates = UsedRates()
        given = with_source(read_callbacks(keys, callbacks, every=every, log_as=log_as), self._rates)
        self._has_rates = self._rates in (getattr(each, "source", None) for each in given)
        super().__init__(
            path,
            given,
            accumulation_steps=accelerator.gradient_accumulation_steps,
            trackers=trackers if isinstance(trackers, str) else [*trackers, TrainerLog(accelerator.log)],
            **arguments,
        )
        self._loaded: Mapping[str, Any] | None = None
        self._follows_epochs = arguments.get("updates_per_epoch") is None
        self._follows_samples = arguments.get("effective_batch_size") is None
        self._is_in_epoch = False  # whether an update came since the last epoch's end
        self._is_told = False  # whether `step` was told the samples
        accelerator.register_for_checkpointing(_Checkpointed(self))

    def _refuse_units(self, *, epochs: bool, samples: bool) -> None:
        """Refuse nothing: the dataloader may tell."""

    @in_turn
    def start(self) -> Self:
        """Begin training, where a checkpoint that was loaded before left it.

        Raises:
            NoetherError: for a learning rate with neither `key` nor `source`, unless the accelerator prepared one optimizer.
        """
        optimizers = self._accelerator._optimizers
        if self._has_rates and len(optimizers) != 1:
            raise NoetherError(
                f"a LearningRateCallback has neither key nor source, and the accelerator prepared {len(optimizers)} optimizers;"
                " prepare one before the run starts, or give source=optimizer"
            )
        super().start()
        if self._loaded is not None:
            self.load_state_dict(self._loaded)
        if self._has_rates:
            self._rates.watch(optimizers[0])
        return self

    def finish(self) -> None:
        """End training; see `noether_torch.Run.finish`."""
        self._rates.release()
        super().finish()

    @in_turn
    def step(self, update_outputs: Any = None, *, samples: int | None = None, **arguments: Any) -> None:
        """Count and track one accumulation step; see `noether_torch.Run.step`."""
        self._is_told = samples is not None
        super().step(update_outputs, samples=samples, **arguments)

    def _accumulation_step(
        self, outputs: Any, batch: Any, losses: Any, ends_update: bool | None, ends_epoch: bool | None
    ) -> None:
        state, update, samples = self._accelerator.gradient_state, self.counter.update, self._samples
        loader = self._iterated()
        is_last = is_exhausted(loader)
        if self._follows_samples and not self._is_told:
            self._add_samples(self._samples_of(loader, is_last))
        ends_update = state.sync_gradients if ends_update is None else ends_update
        at_end = self._follows_epochs and ends_epoch is None and is_last
        try:
            super()._accumulation_step(outputs, batch, losses, ends_update, at_end or ends_epoch)
        except BaseException:
            if self.counter.update == update:  # the step is not counted
                self._samples = samples
            raise
        finally:
            if self.counter.update != update:
                self._is_in_epoch = not at_end
        if at_end and not ends_update:
            self.end_epoch()

    def _iterated(self) -> Any:
        """Return the dataloader that is iterated, if this accelerator prepared it, or one that skips batches of such a one."""
        active = self._accelerator.gradient_state.active_dataloader  # also one that some other loop left in its middle
        prepared = self._accelerator._dataloaders
        return active if any(each.dataset is active.dataset for each in prepared if active is not None) else None

    def _samples_of(self, loader: Any, is_last: bool) -> int:
        known = "the accelerator prepared no dataloader" if loader is None else samples_of_batch(loader, is_last)
        if isinstance(known, int):
            return known
        refuse_unknown_samples(self.callbacks, known, "Say it: run.step(update_outputs, samples=len(batch))")
        size = getattr(loader, "total_batch_size", 1)
        return size if isinstance(size, int) else 1

    @in_turn
    def end_epoch(self) -> None:
        """Say that the last update ended an epoch; where the dataloader's end said so before, nothing happens."""
        if self._is_in_epoch or not self._follows_epochs:
            self._is_in_epoch = False
            super().end_epoch()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        if self._state == "new":
            self._loaded = state
        else:
            super().load_state_dict(state)


class _Checkpointed:
    """Let the accelerator save and load the states of all processes' runs: it asks all, and the main one's answer is saved."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def state_dict(self) -> dict[str, Any]:
        run = self._run
        if run._state != "training":
            return run.state_dict()
        state = state_of_all(run)
        return for_checkpoint(state) if run.is_main else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        load_state_of_all(self._run, state)
