"""Keep the newest steps of what is tracked, on its device: references to what was stacked to be reduced anyway.

A step costs nothing: the steps that wait to be reduced are there, and when they are reduced, or their interval ends, they are
kept here instead of forgotten. What is kept takes a bounded memory, like that of the steps that wait. What a step had of each
key is read only when somebody asks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import accumulate, chain
from typing import Any

import numpy as np

from noether_core.algebra.sums import each
from noether_core.reduce.eager import ReducerState
from noether_core.reduce.latest import Cells, Latest, joined
from noether_core.reduce.layout import Layout, Pending
from noether_core.reduce.plan import DeviceGroup
from noether_core.silence import SILENT

MOST_VALUES = 2**18  # of all steps of a layout together, but of two steps always
_MOST_LAYOUTS = 32

_Array = np.ndarray[Any, Any]
_Steps = deque[tuple[Pending, ...]]


class RecentSteps:
    """Keep the newest steps that wait no more, of each layout: so those of a key that comes seldom are not pushed out.

    Args:
        most: how many; fewer of steps with very many values.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[Layout, tuple[DeviceGroup, _Steps]] = {}  # what came last is at the end
        self._last: tuple[Layout | None, _Steps] = None, deque()

    def keep_all(self, states: Mapping[DeviceGroup, ReducerState]) -> None:
        """Keep what is pending of each device group. It is called at every interval's end: be quick."""
        layout, kept = self._last
        for group, state in states.items():
            pending = state.pending
            if state.layout is layout and len(pending) == 1:
                kept.append(pending)
            else:
                self.keep(group, state)

    def keep(self, group: DeviceGroup, state: ReducerState) -> None:
        """Keep what is pending of a state."""
        layout, kept = self._last
        if state.layout is not layout:
            kept = self._turned_to(group, state.layout)
        most = kept.maxlen or 1
        kept.append(state.pending[-most:])
        while sum(map(len, kept)) - len(kept[0]) >= most:
            kept.popleft()

    def _turned_to(self, group: DeviceGroup, layout: Layout) -> _Steps:
        most = min(self._most, max(2, MOST_VALUES // layout.stacked))
        found = self._kept.pop(layout, None) or (group, deque(maxlen=most))
        self._kept[layout] = found
        self._last = layout, found[1]
        if len(self._kept) > _MOST_LAYOUTS:
            del self._kept[next(iter(self._kept))]
        return found[1]

    def clear(self) -> None:
        """Forget all."""
        self._last = None, deque()
        self._kept.clear()

    def read(self, states: Mapping[DeviceGroup, ReducerState]) -> list[Latest]:
        """Return the newest values of each key, in the order that they came. This waits for the device.

        Of a step that was undone and then made again the second counts.

        Args:
            states: those of the interval under way.
        """
        found = {layout: (group, [*chain(*kept)]) for layout, (group, kept) in self._kept.items()}
        for group, state in states.items():
            found.setdefault(state.layout, (group, []))[1].extend(state.pending)
        return joined(part for layout, of_layout in found.items() for part in self._read(layout, *of_layout))

    def _read(self, layout: Layout, group: DeviceGroup, pending: list[Pending]) -> Iterator[tuple[str, _Array, Cells]]:
        steps = {step.position: step for step in pending}
        positions = sorted(steps)[-self._most :]
        newest = tuple(steps[position] for position in positions)
        for key, cells in _cells_of(group, ReducerState(None, newest, layout, len(layout.slots))):
            yield key, np.array(positions, np.int64), cells


def _cells_of(group: DeviceGroup, state: ReducerState) -> Iterator[tuple[str, Cells]]:
    """Yield what the steps that are pending had of each key."""
    layout, batch = state.layout, group.reducer.batch(state)
    is_weighted, about = bool(layout.fields.weights), iter(zip(layout.keys, layout.elements, strict=True))
    for at, rows in enumerate(batch.rows):
        numbers, is_scalar = _plain(rows), at < len(layout.dtypes)
        sizes = (1,) * numbers.shape[1] if is_scalar else layout.small[at - len(layout.dtypes)]
        for end, size in zip(accumulate(sizes), sizes, strict=True):
            key, elements = next(about)
            yield (
                key,
                Cells(numbers[:, end - 1] if is_scalar else numbers[:, end - size : end], None, elements, is_weighted),
            )
    for at, (key, elements) in enumerate(about):
        assert batch.arrays is not None
        yield key, Cells(None, each(lambda field, at=at: field[:, at], batch.arrays), elements, is_weighted)


@SILENT
def _plain(rows: _Array) -> _Array:
    """Return numbers in a dtype that Python's have."""
    return rows if rows.dtype.kind in "biu" else rows.astype(np.float64)
