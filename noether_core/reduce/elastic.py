"""Hand what some processes had of the intervals under way to other processes, as many or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from noether_core.checked import listed, text, whole
from noether_core.errors import NoetherError, listing
from noether_core.reduce.partial import merge_all, no_partials
from noether_core.reduce.state import damaged, is_packed, pack, unpack

State = Mapping[str, Any]
IsReplicated = Callable[[str, str], bool]  # of a callback's name in the state, and a key


def none_is_replicated(name: str, key: str) -> bool:
    """Return False."""
    return False


def merged_states(
    states: Sequence[State], index: int, is_replicated: IsReplicated = none_is_replicated
) -> dict[str, Any]:
    """Return what a process is to load of the states that a run's processes saved at one step.

    The first process gets the intervals under way of all, merged in the order of the processes that had them; each other one
    an empty interval. All have the first state's counter, and what else its callbacks held.

    Args:
        states: what `Run.state_dict()` returned in each process, in their order; at least one.
        index: the process that will load it, from 0.
        is_replicated: whether every process has a key alike: the first one's counts.

    Raises:
        NoetherError: for states that are not of one run at one step, or are damaged.
    """
    _check_alike(states)
    first = states[0]
    try:
        return {
            **first,
            "callbacks": {
                name: _merged([state["callbacks"][name] for state in states], index, partial(is_replicated, name))
                if is_packed(state)
                else state
                for name, state in first["callbacks"].items()
            },
        }
    except NoetherError:
        raise
    except Exception as error:
        raise damaged(error) from error


def _check_alike(states: Sequence[State]) -> None:
    try:
        stands = [
            (
                {unit: int(number) for unit, number in state["iteration"].items()},
                int(state["accumulated"]),
                sorted(map(str, state["callbacks"])),
            )
            for state in states
        ]
    except Exception as error:
        raise NoetherError(
            f"a process's state is incomplete ({error!r:.200}); give what Run.state_dict() returned"
        ) from error
    for process, found in enumerate(stands):
        for what, own, wanted in zip(("iteration", "accumulation steps", "callbacks"), found, stands[0], strict=True):
            if own != wanted:
                raise NoetherError(
                    f"the state of process {process} has the {what} {own}, that of process 0 {wanted}; give states that all"
                    " processes of one run saved at the same step"
                )


def _merged(states: Sequence[State], index: int, is_replicated: Callable[[str], bool]) -> dict[str, Any]:
    parts, copied = [unpack(state) for state in states], set[str]()
    for at, part in enumerate(parts):
        parts[at] = part.in_order(tuple(key for key in part.keys if key not in copied))
        copied |= {key for key in part.keys if is_replicated(key)}
    fields = {part.fields for part in parts if part.keys} or {parts[0].fields}
    if len(fields) > 1:
        raise NoetherError(
            f"the processes' states have the fields {listing(map(str, fields))}; give states that one config made"
        )
    (common,) = fields
    return {
        **states[0],
        **pack(merge_all(parts) if index == 0 else no_partials(common)),
        "steps": max(whole(state["steps"], "'steps'") for state in states),
        "matched": sorted({text(pattern, "a pattern") for state in states for pattern in listed(state["matched"])}),
    }
