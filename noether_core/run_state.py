"""Save the state of a run in a file, of several processes all in one, and hand it to a run of as many processes or not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from noether_core.checked import MOST_UPDATES, mapping, real, text, whole
from noether_core.emit.state_file import decode_state, encode_state, read_state, write_state
from noether_core.errors import NoetherError, RunFormatError, listing
from noether_core.reduce.elastic import IsReplicated, merged_states
from noether_core.reduce.exchange import Exchange
from noether_core.schedule import UNITS, TrainingIteration


class Standing(NamedTuple):
    """Hold what `Run.state_dict()` says, once it is known to be whole.

    Attributes:
        iteration: the epochs, updates and samples that were completed.
        accumulated: the accumulation steps of the update under way.
        samples: those of the update under way, where they were told.
        times: its seconds by name, likewise.
        has_outputs: whether it had update outputs.
        start: the id of the start that saved it, if it has one.
        callbacks: the callbacks' states, in their order.
    """

    iteration: TrainingIteration
    accumulated: int
    samples: int | None
    times: dict[str, float] | None
    has_outputs: bool
    start: str | None
    callbacks: list[Any]


def read_standing(state: Any, names: Collection[str]) -> Standing:
    """Read what a run's `state_dict()` returned.

    Args:
        state: what arrived.
        names: those of the run's callbacks.

    Raises:
        NoetherError: if it is another run's; ValueError: if it is damaged.
    """
    named = mapping(mapping(state, "it", "callbacks", "iteration", "accumulated")["callbacks"], "'callbacks'")
    if set(named) != set(names):
        raise NoetherError(
            f"the state has the callbacks {listing(map(str, named))}, this run {listing(names)}; load it into a run of the"
            " same config"
        )
    iteration = mapping(state["iteration"], "'iteration'", *UNITS)
    counts = {unit: whole(iteration[unit], f"{unit!r} of 'iteration'", 0, MOST_UPDATES) for unit in UNITS}
    samples = whole(state.get("samples", -1), "'samples'", -1)
    times = mapping(state.get("times", {}), "'times'")
    return Standing(
        TrainingIteration(**counts),
        whole(state["accumulated"], "'accumulated'", 0, MOST_UPDATES),
        None if samples < 0 else samples,
        {str(name): real(seconds, "'times'", least=0) for name, seconds in times.items()} or None,
        bool(whole(int(state.get("has_outputs", False)), "'has_outputs'", 0, 1)),
        text(state.get("start", ""), "'start'") or None,
        [named[name] for name in names],
    )


def save_run_state(path: str | Path, state: Mapping[str, Any], exchange: Exchange | None) -> None:
    """Write what this process's `state_dict()` returned; the main process writes those of all.

    Args:
        path: the file.
        state: this process's.
        exchange: talks to the other processes, which call this too; None where there are none.

    Raises:
        ProcessesMissingError: if some do not come; NoetherError, OSError: if the state cannot be written.
    """
    if exchange is None:
        write_state(path, state)
        return
    data = encode_state(state)
    exchange.arrive(f"save the state {str(path)!r}")
    gathered = exchange.gather_to_main(data)
    failure: Exception | None = None
    if gathered is not None:
        try:
            write_state(path, {"processes": [np.frombuffer(each, np.uint8) for each in gathered]})
        except (NoetherError, OSError) as error:
            failure = error
    told = exchange.all_gather(b"" if failure is None else repr(failure).encode("utf-8", "replace"))[0]
    if failure is not None:
        raise failure
    if told:
        raise NoetherError(f"process 0 could not write the state {str(path)!r}: {told.decode('utf-8')}")


def load_run_state(path: str | Path, exchange: Exchange | None, is_replicated: IsReplicated) -> dict[str, Any]:
    """Return what this process is to load of a file that `save_run_state` wrote; only the main process reads it.

    Args:
        path: the file.
        exchange: talks to the other processes, which call this too; None where there are none.
        is_replicated: see `merged_states`.

    Raises:
        RunFormatError: for a file that is missing, damaged, or no state; NoetherError: for states that do not belong together.
        ProcessesMissingError: if some processes do not come.
    """
    if exchange is None:
        return merged_states(_read_states(Path(path)), 0, is_replicated)
    exchange.arrive(f"load the state {str(path)!r}")
    states: list[dict[str, Any]] = []
    failure: Exception | None = None
    if exchange.index == 0:
        try:
            states = _states_for(exchange.count, _read_states(Path(path)), is_replicated)
        except NoetherError as error:
            failure = error
    told = exchange.all_gather(b"" if failure is not None else str(len(states)).encode("ascii"))[0]
    if failure is not None:
        raise failure
    if not told:
        raise RunFormatError(f"process 0 could not read the state {str(path)!r}; its own error says why")
    data = b""
    for process in range(1, int(told)):  # one after the other, so that none holds all
        sent = exchange.all_gather(encode_state(states[process]) if exchange.index == 0 else b"")[0]
        data = sent if process in (1, exchange.index) else data
    return states[0] if exchange.index == 0 else decode_state(data, "what process 0 sent")


def _states_for(count: int, saved: list[dict[str, Any]], is_replicated: IsReplicated) -> list[dict[str, Any]]:
    """Return what so many processes are to load: each its own, or the first one all, and what is for each of the others."""
    merged = merged_states(saved, 0, is_replicated)  # which finds what is wrong with any of them
    return saved if len(saved) == count else [merged, merged_states(saved, 1)]


def _read_states(path: Path) -> list[dict[str, Any]]:
    """Return the states of the processes that a file has, in order."""
    state = read_state(path)
    if "processes" not in state:
        return [state]
    saved = state["processes"]
    if not isinstance(saved, list) or not saved or not all(isinstance(each, np.ndarray) for each in saved):
        raise RunFormatError(f"{path} holds no processes' states; give what save_state wrote")
    return [decode_state(each.tobytes(), f"{path}, process {index}") for index, each in enumerate(saved)]
