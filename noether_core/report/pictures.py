"""Turn saved arrays into heat maps for the page, one file at a time; of two runs their difference too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from noether_core.emit.array_files import ArrayFile
from noether_core.emit.reader import RunReader
from noether_core.errors import NoetherError
from noether_core.report.packing import narrow, packed
from noether_core.report.thinning import pooled

Array = np.ndarray[Any, Any]
_MOST_UPDATES = 12  # of an interval
_MOST_PANELS = 600
_MOST_CELLS = 600_000  # of all panels, so that a page stays small
_PANEL_CELLS = (256, 4096)  # of one: at least, at most
_MOST_BYTES = 2**28  # of a file that is read


def pictures(runs: Sequence[RunReader], wanted: int | None = None) -> dict[str, Any]:
    """Return the saved arrays of some runs as plain data.

    Args:
        runs: whose arrays.
        wanted: an update that is shown in any case, such as that of the first difference.

    Returns:
        `pictures`: of each array its interval, name, and panels by update; and `problems`, sentences.
    """
    problems: list[str] = []
    files = _chosen(runs, wanted)
    names = {at: _headers(file, problems) for at, file in files.items()}
    panels = sum(map(len, names.values())) * (3 if len(runs) == 2 else 2) // 2
    most = int(np.clip(_MOST_CELLS // max(1, min(panels, _MOST_PANELS)), *_PANEL_CELLS))
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    drawn = left_out = 0
    for interval, update in dict.fromkeys((interval, update) for interval, update, _ in files):
        places = [place for place in range(len(runs)) if (interval, update, place) in files]
        wanted_names = dict.fromkeys(name for place in places for name in names[interval, update, place])
        if drawn + len(wanted_names) > _MOST_PANELS:
            left_out += len(wanted_names)
            continue
        arrays = {place: _load(files[interval, update, place], problems) for place in places}
        for name in wanted_names:
            of_name = {place: arrays[place][name] for place in places if name in arrays[place]}
            if frame := list(_panels(of_name, most)):
                drawn += len(frame)
                found.setdefault((interval, name), []).append({"update": update, "panels": frame})
    if left_out:
        problems.append(f"{left_out} more saved arrays have no room on this page")
    shown = [{"interval": interval, "name": name, "frames": frames} for (interval, name), frames in found.items()]
    return {"pictures": shown, "problems": problems}


def _chosen(runs: Sequence[RunReader], wanted: int | None) -> Mapping[tuple[str, int, int], ArrayFile]:
    """Return the files that are shown, by interval, update and the run's place: of each interval so many, evenly spread."""
    files: dict[tuple[str, int, int], ArrayFile] = {}
    updates: dict[str, set[int]] = {}
    for place, run in enumerate(runs):
        for file in run.arrays:
            update = file.iteration.update or 0
            files[file.interval, update, place] = file
            updates.setdefault(file.interval, set()).add(update)
    chosen: dict[str, set[int]] = {}
    for interval, there in updates.items():
        rising = sorted(there)
        spread = np.unique(np.linspace(0, len(rising) - 1, min(len(rising), _MOST_UPDATES)).round().astype(int))
        chosen[interval] = {rising[at] for at in spread} | ({wanted} if wanted is not None else set())
    return {at: file for at, file in sorted(files.items(), key=lambda each: each[0]) if at[1] in chosen[at[0]]}


def _headers(file: ArrayFile, problems: list[str]) -> Sequence[str]:
    """Return the names of a file's arrays; none of one that is too large to be read here, or damaged."""
    try:
        headers = file.headers()
    except (NoetherError, OSError, ValueError) as error:
        problems.append(f"damaged, left out: {error}")
        return ()
    size = sum(header.dtype.itemsize * int(np.prod(header.shape, dtype=object)) for header in headers.values())
    if size > _MOST_BYTES:
        problems.append(f"{file.path} has {size:,} bytes of arrays; files of more than {_MOST_BYTES:,} are not drawn")
        return ()
    return list(headers)


def _load(file: ArrayFile, problems: list[str]) -> Mapping[str, Array]:
    try:
        return file.load(problems)
    except (NoetherError, OSError) as error:
        problems.append(f"damaged, left out: {error}")
        return {}


def _panels(arrays: Mapping[int, Array], most: int) -> Iterator[dict[str, Any]]:
    """Yield a panel for each run's array, and one for the difference of two of one shape."""
    wide = {place: _as_matrix(array) for place, array in arrays.items() if array.size}
    for place, matrix in wide.items():
        about = {"run": place, "dtype": str(arrays[place].dtype), "shape": list(arrays[place].shape)}
        yield about | _panel(matrix, most)
    if set(wide) == {0, 1} and arrays[0].shape == arrays[1].shape:
        a, b = wide[0], wide[1]
        with np.errstate(all="ignore"):
            difference = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, b - a)
        yield {"run": -1, "shape": list(arrays[0].shape)} | _panel(difference, most)


def _as_matrix(array: Array) -> Array:
    """Return an array as float64 [rows, columns]: the first axis against all others; of a complex one the magnitude."""
    values = np.abs(array) if array.dtype.kind == "c" else array
    matrix = values.reshape(len(values), -1) if values.ndim > 1 else values.reshape(1, -1)
    with np.errstate(all="ignore"):
        return matrix.astype(np.float64)


def _panel(matrix: Array, most: int) -> dict[str, Any]:
    known = matrix[np.isfinite(matrix)]
    cells = pooled(matrix, most)
    ends = [float(known.min()), float(known.max()), float(np.mean(known))] if len(known) else None
    return {
        "rows": cells.shape[0],
        "columns": cells.shape[1],
        "of": list(matrix.shape),
        "ends": ends,
        "odd": int(matrix.size - len(known)),
        "cells": packed(narrow(cells)),
    }
