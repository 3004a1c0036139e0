"""Call the hooks of all callbacks of a run, in the right order.

For each accumulation step: `track_after_accumulation_step`, the counter still showing what was completed before. After an
update's last one: the counter moves; `track_after_update_step`; `after_update`; at an epoch's end, `after_epoch`; then the same
two of the callbacks that read the log (`reads_log`), which so see what all the others logged, wherever they stand in the
list; a flush. So one entry holds all that was logged for one update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from noether_core.callbacks.base import CallbackBase
from noether_core.errors import HookOrderError
from noether_core.schedule import Counter

_OFTEN = frozenset({"after_update", "after_epoch"})


def next_position(
    before: tuple[int, int], update: int, accumulation_steps: int, accumulation_step: int
) -> tuple[int, int]:
    """Return where an accumulation step stands: the updates completed before it, and its number in its update.

    Raises:
        HookOrderError: if it does not come after the step that stood at `before`.
    """
    if not 0 <= accumulation_step < accumulation_steps:
        raise HookOrderError(
            f"accumulation_step={accumulation_step} of accumulation_steps={accumulation_steps};"
            f" expected 0 to {accumulation_steps - 1}: the steps of an update count from 0"
        )
    position = update, accumulation_step
    if position <= before:
        raise HookOrderError(
            f"accumulation step {accumulation_step} after {update} updates came after step {before[1]} after"
            f" {before[0]} updates; expected later ones only. Count the update (next_update) before the next"
            " one's steps, or call before_training to start anew"
        )
    return position


def accumulation_step(
    callbacks: Sequence[CallbackBase], arguments: Mapping[str, Any], done: list[CallbackBase]
) -> None:
    """Call `track_after_accumulation_step` of each with these arguments; those that have made it are added to `done`."""
    for callback in callbacks:
        callback.track_after_accumulation_step(**arguments)
        done.append(callback)


def undo_accumulation_step(
    callbacks: Sequence[CallbackBase], done: Sequence[CallbackBase], update: int, accumulation_step: int
) -> None:
    """Let those callbacks that have tracked a step forget it: the first ones, which are `done`, and maybe the next."""
    for callback in callbacks[: len(done) + 1]:
        if callback in done or callback.has_tracked(update, accumulation_step):
            callback.undo_accumulation_step()


def periodic(callbacks: Sequence[CallbackBase], hooks: Sequence[str], update_counter: Counter) -> list[Exception]:
    """Call these hooks of each, whatever the others do, those that read the log last; return what was raised."""
    errors = []
    for reads_log in (False, True):
        for hook in hooks:
            for callback in callbacks:
                if callback.reads_log is reads_log:
                    method = getattr(callback, hook)
                    try:
                        if hook in _OFTEN:  # their interval's end is whole
                            method(update_counter=update_counter)
                        else:
                            callback.whole(method, update_counter=update_counter)
                    except Exception as error:
                        errors.append(error)
    return errors
