"""Turn saved arrays into heat maps for the page, one update at a time; of two runs their difference too."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from noether_core.errors import NoetherError
from noether_core.report.packing import narrow, packed
from noether_core.report.recorded import Frame, Recorded
from noether_core.silence import SILENT
from noether_core.thinning import pooled

Array = np.ndarray[Any, Any]
Frames = dict[int, dict[int, Frame]]  # by update, by the run's place
_UPDATES = (2, 12)  # of an interval: at least, at most
_MOST_PANELS = 600
_MOST_CELLS = 600_000  # of all panels, so that a page stays small
_PANEL_CELLS = (256, 4096)  # of one: at least, at most


@SILENT
def pictures(runs: Sequence[Recorded], update: int | None = None, keys: Collection[str] = ()) -> dict[str, Any]:
    """Return the saved arrays of some runs as plain data.

    Args:
        runs: whose arrays.
        update: one that is shown in any case, such as that of the first difference.
        keys: names that come before others, where not all have room.

    Returns:
        `pictures`: of each array its interval, name, and panels by update; and `problems`, sentences.
    """
    problems: list[str] = []
    chosen = {
        interval: _chosen(frames, update, keys, problems) for interval, frames in sorted(_by_interval(runs).items())
    }
    panels = sum(len(frames) * len(names) for frames, names in chosen.values()) * (3 if len(runs) == 2 else len(runs))
    most = int(np.clip(_MOST_CELLS // max(1, panels), *_PANEL_CELLS))
    shown = []
    for interval, (frames, names) in chosen.items():
        of_name: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for at, of_update in frames.items():
            for name in names:
                arrays = {place: frame.load(name, problems) for place, frame in of_update.items()}
                if drawn := list(_panels({place: each for place, each in arrays.items() if each is not None}, most)):
                    of_name[name].append({"update": at, "panels": drawn})
            of_update.clear()  # what was read of these files is not needed again
        shown += [{"interval": interval, "name": name, "frames": each} for name, each in of_name.items() if each]
    return {"pictures": shown, "problems": problems}


def _by_interval(runs: Sequence[Recorded]) -> dict[str, Frames]:
    found: dict[str, Frames] = {}
    for place, run in enumerate(runs):
        for (interval, update), frame in run.frames().items():
            found.setdefault(interval, {}).setdefault(update, {})[place] = frame
    return found


def _chosen(
    frames: Frames, wanted: int | None, keys: Collection[str], problems: list[str]
) -> tuple[Frames, Sequence[str]]:
    """Return which updates and names of an interval are shown, so that there are not too many panels."""
    names: dict[str, None] = {}
    ends = [sorted(frames)[0], sorted(frames)[-1]]
    for frame in [frame for update in dict.fromkeys(ends) for frame in frames[update].values()]:
        try:
            names |= dict.fromkeys(frame.names())
        except (NoetherError, OSError, ValueError) as error:
            problems.append(f"damaged, left out: {error}")
    runs = 3 if any(len(each) == 2 for each in frames.values()) else max(map(len, frames.values()))
    room = max(1, _MOST_PANELS // (runs * _UPDATES[0]))
    if len(names) > room:
        problems.append(f"{len(names) - room} more saved arrays have no room on this page")
    shown = sorted(sorted(names, key=lambda name: name not in keys)[:room], key=list(names).index)
    count = int(np.clip(_MOST_PANELS // (runs * max(1, len(shown))), *_UPDATES))
    rising = sorted(frames)
    spread = np.unique(np.linspace(0, len(rising) - 1, min(len(rising), count)).round().astype(int))
    updates = {rising[at] for at in spread} | ({wanted} & set(rising) if wanted is not None else set())
    return {update: frames[update] for update in sorted(updates)}, shown


def _panels(arrays: Mapping[int, Array], most: int) -> Iterator[dict[str, Any]]:
    """Yield a panel for each run's array, and one for the difference of two of one shape."""
    wide = {place: _as_matrix(array) for place, array in arrays.items() if array.size}
    for place, matrix in wide.items():
        about = {"run": place, "dtype": str(arrays[place].dtype), "shape": list(arrays[place].shape)}
        yield about | _panel(matrix, most)
    if set(wide) == {0, 1} and arrays[0].shape == arrays[1].shape:
        a, b = wide[0], wide[1]
        difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, b - a)
        yield {"run": -1, "shape": list(arrays[0].shape)} | _panel(difference, most)


def _as_matrix(array: Array) -> Array:
    """Return an array as float64 [rows, columns]: the first axis against all others; of a complex one the magnitude."""
    values = np.abs(array) if array.dtype.kind == "c" else array
    matrix = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(1, -1)
    return matrix.astype(np.float64)


def _panel(matrix: Array, most: int) -> dict[str, Any]:
    known = matrix[np.isfinite(matrix)]
    cells = pooled(matrix, most)
    ends = [float(known.min()), float(known.max())] if len(known) else None
    return {
        "rows": cells.shape[0],
        "columns": cells.shape[1],
        "of": list(matrix.shape),
        "ends": ends,
        "odd": int(matrix.size - len(known)),
        "cells": packed(narrow(cells)),
    }
