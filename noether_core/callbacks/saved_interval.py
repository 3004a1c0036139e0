"""Save the interval under way of a tracking callback, and read it back."""

from __future__ import annotations

from typing import Any, NamedTuple

from noether_core.algebra.sums import Fields
from noether_core.callbacks.matches import Matched
from noether_core.checked import listed, text, whole
from noether_core.errors import NoetherError
from noether_core.reduce.partial import Partials
from noether_core.reduce.state import damaged, pack, unpack


class SavedInterval(NamedTuple):
    """Hold an interval under way.

    Attributes:
        partials: what was tracked.
        reached: the epochs, updates or samples at the last look; None: there was none.
        position: of the last accumulation step: the updates completed before it, and its number.
        matched: what the update outputs matched.
        emitted_at: the update at which it began, as an interval ended there; -1: none did.
    """

    partials: Partials
    reached: int | None
    position: tuple[int, int]
    matched: Matched
    emitted_at: int


def packed_interval(interval: SavedInterval) -> dict[str, Any]:
    """Return plain arrays, numbers and strings, the same for every framework."""
    return pack(interval.partials) | {
        "reached": -1 if interval.reached is None else interval.reached,
        "position": list(interval.position),
        "emitted_at": interval.emitted_at,
        "steps": interval.matched.steps,
        "matched": sorted(interval.matched.patterns),
    }


def read_interval(state: Any, title: str, wanted: Fields) -> SavedInterval:
    """Read what `packed_interval` returned, in this framework or another.

    Raises:
        NoetherError: if it is damaged, or has not the fields that are wanted; the message names `title`.
    """
    partials = unpack(state)
    try:
        steps, patterns = whole(state["steps"], "'steps'"), listed(state["matched"], "'matched'")
        matched = Matched(steps, frozenset(text(pattern, "a pattern") for pattern in patterns))
        reached = whole(state["reached"], "'reached'", -1)
        emitted_at = whole(state.get("emitted_at", -1), "'emitted_at'", -1)  # which states of before have not
        update, step = (whole(each, "'position'", -1) for each in listed(state["position"], "'position'"))
    except Exception as error:
        raise damaged(error) from error
    if partials.fields != wanted and partials.keys:
        raise NoetherError(
            f"the state has the fields {partials.fields._asdict()}, {title} needs {wanted._asdict()}; load a state that was"
            " made with the same `reduce` and `weight`"
        )
    return SavedInterval(partials, None if reached < 0 else reached, (update, step), matched, emitted_at)
