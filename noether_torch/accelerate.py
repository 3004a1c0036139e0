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
from typing import TYPE_CHECKING, Any

from noether_core.callbacks.build import Callbacks
from noether_core.emit.trackers import Tracker
from noether_core.errors import NoetherError
from noether_torch import callbacks as torch_callbacks
from noether_torch.trainer import TrainerLog, as_arrays, as_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator  # type: ignore[import-untyped] # it ships without types


class Run(torch_callbacks.Run):
    """Track a training run with the accelerator's accumulation, checkpoints and trackers.

    A call of `step` is an accumulation step; it ends the update where the accelerator syncs the gradients, so also at the
    dataloader's end. `accelerator.save_state` holds the interval under way, as tensors; `accelerator.load_state` may come
    before the `with` block or in it. What is logged goes to `accelerator.log` too, with the update as its step.

    Args:
        path, callbacks, trackers: as for `noether_torch.Run`; the accelerator's own trackers come beside these.
        accelerator: the `accelerate.Accelerator`.
        **arguments: of `noether_torch.Run`, but `accumulation_steps`, which the accelerator has.
    """

    def __init__(
        self,
        path: str | Path,
        callbacks: Callbacks,
        *,
        accelerator: Accelerator,
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
        super().__init__(
            path,
            callbacks,
            accumulation_steps=accelerator.gradient_accumulation_steps,
            trackers=trackers if isinstance(trackers, str) else [*trackers, TrainerLog(accelerator.log)],
            **arguments,
        )
        self._loaded: Mapping[str, Any] | None = None
        accelerator.register_for_checkpointing(self)

    def start(self) -> None:
        """Begin training, where a checkpoint that was loaded before left it."""
        super().start()
        if self._loaded is not None:
            self.load_state_dict(self._loaded)

    def _accumulation_step(
        self, outputs: Any, batch: Any, losses: Any, ends_update: bool | None, ends_epoch: bool | None
    ) -> None:
        ends_update = self._accelerator.sync_gradients if ends_update is None else ends_update
        super()._accumulation_step(outputs, batch, losses, ends_update, ends_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to go on from here: tensors, numbers and strings."""
        return dict(as_tensors(super().state_dict()))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        if self._state == "new":
            self._loaded = state
        else:
            super().load_state_dict(as_arrays(state))
