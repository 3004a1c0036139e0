"""Give a replayed step its batches, and take what was probed of it: what the front-ends' `replayable` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from noether_core.errors import NoetherError, listing
from noether_core.parity.between_runs.step import Array, Arrays
from noether_core.probes.probed import Due, Probed, joined

WHOLE = Due(statistics=True, array_limit=2**62)
"""What is probed of a step that is replayed: all arrays, whole."""


class Place(NamedTuple):
    """Say which accumulation step is replayed.

    Attributes:
        update: of the training, counted from 1.
        accumulation_step: of the update, counted from 0.
        is_last: whether it ends the update, so that the optimizer is to step.
    """

    update: int
    accumulation_step: int = 0
    is_last: bool = True


class ReplayError(NoetherError, ValueError):
    """Report a step that cannot be replayed as it was given."""


def micro_batches(batch: Arrays) -> list[dict[str, Array]]:
    """Return the batch of each accumulation step of an update, out of what was recorded as `x`, `x@1`, `x@2`.

    >>> micro_batches({"x": 1, "y": 2, "x@1": 3, "y@1": 4})
    [{'x': 1, 'y': 2}, {'x': 3, 'y': 4}]
    """
    found: dict[int, dict[str, Array]] = {0: {}}
    for name, array in batch.items():
        first, _, number = name.rpartition("@")
        if first and number.isdecimal() and first in batch:
            found.setdefault(int(number), {})[first] = array
        else:
            found[0][name] = array
    return [found[number] for number in sorted(found)]


def arrays_of(steps: Sequence[Sequence[Probed]], to_numpy: Callable[[Any], Array]) -> dict[str, Array]:
    """Return all that was probed of an update by key, given what was of each of its accumulation steps.

    Args:
        steps: what was probed of each.
        to_numpy: copies an array to the host.

    Raises:
        ReplayError: if nothing was probed, or nothing but samples.
    """
    hosted = [[part.on_host([to_numpy(leaf) for leaf in part.leaves()]) for part in step] for step in steps]
    if not any(hosted):
        raise ReplayError(
            "the step was replayed, and nothing was probed in it; let it return what `probe(due, …)` returns, for the `due`"
            " that it is given"
        )
    found = joined(hosted)
    lacking = [key for key in found.keys if key not in found.arrays]
    if lacking:
        raise ReplayError(
            f"the step kept no whole arrays of {listing(lacking)}; let it probe with the `due` it is given"
        )
    return {key: found.arrays[key] for key in found.keys}


def check_names(given: Mapping[str, Any], known: Mapping[str, Any], what: str, whose: str) -> None:
    """Raise `ReplayError` if something is given by a name that is not known."""
    if strangers := [name for name in given if name not in known]:
        raise ReplayError(
            f"the step was given {what} {listing(strangers)}, which {whose} has not: it has {listing(known)}. Where the runs'"
            " names differ, give `transplant` the two trainings of `paired(a, b)`"
        )
