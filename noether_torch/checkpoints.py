"""Keep the states of all processes' runs in a checkpoint that the main process alone writes, and every process reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from noether_core.emit.state_file import decode_state, encode_state
from noether_core.errors import ProcessesMissingError, RunFormatError, warn
from noether_core.reduce.elastic import merged_states
from noether_torch.callbacks import Run
from noether_torch.state import as_arrays, as_tensors

_ALL, _OWN = "processes", "of this process"


def state_of_all(run: Run) -> dict[str, Any]:
    """Return the states of all processes' runs in the main process, and this one's elsewhere: tensors, numbers and strings.

    All processes call it, at one step. If some do not come, each has its own state alone.
    """
    exchange = run.exchange
    if exchange is None:
        return run.state_dict()
    try:
        exchange.arrive(f"save the state at {run.counter.cur_iteration}")
        gathered = exchange.gather_to_main(encode_state(run.state_dict()))
    except ProcessesMissingError as error:
        warn(f"the states of the processes are not gathered: {error}")
        gathered = None
    if gathered is None:
        return own_state(run)
    return {_ALL: [as_tensors(np.frombuffer(data, np.uint8).copy()) for data in gathered]}


def own_state(run: Run) -> dict[str, Any]:
    """Return this process's state, for this process to go on from."""
    return run.state_dict() if run.exchange is None else {_OWN: run.state_dict()}


def for_checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    """Return what the main process writes into a checkpoint of what `state_of_all` or `own_state` returned in it.

    Where the others' states are not there, it warns: whoever goes on lacks what they had of the intervals under way.
    """
    if _OWN not in state:
        return state
    warn(
        "a checkpoint has what process 0 tracked of the intervals under way, and not what the other processes did, for they did"
        " not save their states with it: a training that goes on from it lacks that. Every interval that ended is in the log"
    )
    return dict(state[_OWN])


def load_state_of_all(run: Run, state: Mapping[str, Any]) -> None:
    """Let a run go on from what `state_of_all` returned in the main process, or `own_state` in this one.

    As many processes as saved it each go on with their own state. Of others the main process goes on with the intervals
    under way of all that saved, the others with empty ones.

    Raises:
        NoetherError: if the state has not this run's callbacks, or is damaged.
    """
    if _OWN in state:
        run.load_state_dict(state[_OWN])
        return
    states = [state] if _ALL not in state else _decoded(state[_ALL])
    index, count = (0, 1) if run.exchange is None else (run.exchange.index, run.exchange.count)
    alike = len(states) == count
    if not alike:
        states = [merged_states([as_arrays(each) for each in states], index, run.is_replicated)]
    run.load_state_dict(states[index if alike else 0])


def _decoded(saved: Any) -> list[dict[str, Any]]:
    saved = as_arrays(saved)
    if not isinstance(saved, list) or not saved or not all(isinstance(each, np.ndarray) for each in saved):
        raise RunFormatError(f"the checkpoint has {type(saved).__name__} for the processes' states; expected arrays")
    return [decode_state(each.tobytes(), f"the checkpoint, process {at}") for at, each in enumerate(saved)]
