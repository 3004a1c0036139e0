"""Keep the states of `TrackOutputs` in a transformers trainer's own state, which its first process alone writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from noether_torch.checkpoints import for_checkpoint, own_state, state_of_all

if TYPE_CHECKING:
    from transformers import TrainerState

    from noether_torch.transformers_run import TransformersRun


class GatheredStates:
    """Hold what all processes had at a step of the trainer's, at the hooks that all make before the first one saves."""

    def __init__(self) -> None:
        self._step, self._state = -1, dict[str, Any]()

    def gather(self, run: TransformersRun | None, state: TrainerState) -> None:
        """Gather the processes' states at the trainer's step; all make this call."""
        if run is not None and run.is_open:
            self._step, self._state = state.global_step, state_of_all(run)

    def of(self, run: TransformersRun, state: TrainerState | None) -> dict[str, Any]:
        """Return what a checkpoint holds; where the others were not asked at its step, this process's own, with a warning."""
        if state is not None and state.global_step == self._step:
            return for_checkpoint(self._state)
        return for_checkpoint(own_state(run)) if run.is_open else run.state_dict()


def saved_entry(state: TrainerState, name: str, number: int) -> Mapping[str, Any] | None:
    """Return what `TrackOutputs.state` returned for the checkpoint; of several in one trainer, the newest of that number."""
    kept: Any = state.stateful_callbacks.setdefault(name, {})  # type: ignore[union-attr]
    entries = kept if isinstance(kept, list) else [kept]
    found = [each for each in entries if each.get("number", 0) == number and each.get("run") is not None]
    return found[-1] if found else None


def forget_saved(state: TrainerState, name: str, number: int) -> None:
    """Take out of the trainer's state what an earlier checkpoint saved of several: the next one appends to it."""
    kept: Any = state.stateful_callbacks[name]  # type: ignore[index,call-overload]
    if isinstance(kept, list):
        kept[:] = [each for each in kept if each.get("number", 0) != number]
