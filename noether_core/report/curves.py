"""Turn what runs logged into curves for the page: thinned, packed, and those of one key together."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from noether_core.emit.columns import Series
from noether_core.report.packing import narrow, packed, smallest
from noether_core.report.recorded import Recorded
from noether_core.silence import SILENT
from noether_core.text import as_float, number
from noether_core.thinning import kept_rows, knots, means

Array = np.ndarray[Any, Any]
MOST_CURVES = 20_000
_MOST_POINTS = 1_200_000  # of all curves, so that a page stays below 15 MB
_CURVE_POINTS = (80, 4000)  # of one: at least, at most
_MOST_TIMES = 4096  # of a run's wall times; others are interpolated
_MOST_TEXTS = 20  # values of a key that logs text
_MEANS = (16, 500)  # of a thinned curve, to smooth it by: at least, at most
_MOST_PROVISIONAL = 64  # values of a curve that are kept for being provisional, the newest
AXES = ("update", "epoch", "sample", "time")


class Clocks:
    """Collect when runs logged: keys that are logged together share a clock."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._held: list[Array] = []  # so that no other array takes an id
        self.packed: list[dict[str, Any]] = []

    def place_of(self, series: Series, begun: float) -> int:
        """Return the place of a series' clock among all.

        Args:
            series: what was logged.
            begun: when the run's first entry was written, in seconds; its times count from there.
        """
        key = id(series.update)
        if key not in self._places:
            self._places[key] = len(self.packed)
            self._held.append(series.update)
            self.packed.append(_packed_clock(series, begun))
        return self._places[key]


def axis_values(series: Series, axis: str, begun: float) -> Array | None:
    """Return where a series' values stand on an axis, as float64; None where that is not known.

    Args:
        series: what was logged.
        axis: `update`, `epoch` (with the part of the one under way), `sample` or `time` (in seconds since `begun`).
        begun: when the run's first entry was written, in seconds since 1970.
    """
    values: Array = getattr(series, axis).astype(np.float64)
    if axis != "update" and not values.any():
        return None  # it was not counted
    if axis == "epoch":
        values = _parts_of_epochs(series.update.astype(np.float64), values)
    if axis == "time":
        values = values - begun
    return values if np.isfinite(values).all() else None  # when they were written may not be known


def _packed_clock(series: Series, begun: float) -> dict[str, Any]:
    clock: dict[str, Any] = {"n": len(series)}
    for axis in AXES:
        if (values := axis_values(series, axis, begun)) is None:
            continue
        places = knots(values, _MOST_TIMES if axis == "time" else None)
        clock[axis] = [packed(smallest(places)), packed(narrow(values[places]) if axis == "time" else values[places])]
    return clock


def _parts_of_epochs(update: Array, epoch: Array) -> Array:
    """Return how many epochs were completed, with the part of the one under way, if all epochs can have as many updates."""
    is_later = epoch > 0
    length = np.min(update[is_later] / epoch[is_later], initial=np.inf)
    return update / length if np.isfinite(length) and np.all(update / length < epoch + 1) and length > 0 else epoch


def charts(runs: Sequence[Recorded], keys: Collection[str] | None = None) -> dict[str, Any]:
    """Return the curves of some runs as plain data, of these keys or of all.

    Of two runs, each key has their relative difference too, |a − b| / max(|a|, |b|), at the updates that both logged.

    Returns:
        `clocks`, `charts`, `texts` (what is logged as text), and `left_out`, how many curves were too many.
    """
    numbers = {key: found for key in keys_of(runs, keys) if (found := numbers_of(runs, key))}
    curves = sum(len(found) for found in numbers.values()) * (2 if len(runs) == 2 else 1)
    most = int(np.clip(_MOST_POINTS // max(curves, 1), *_CURVE_POINTS))
    clocks, begun, drawn, left_out = Clocks(), [begin_of(run) for run in runs], 0, 0
    result = []
    for key, found in numbers.items():
        if drawn + len(found) > MOST_CURVES:
            left_out += len(found)
            continue
        drawn += len(found)
        packed_curves = [
            {
                "run": place,
                "clock": clocks.place_of(runs[place].series[key], begun[place]),
                **_packed_curve(values, most, runs[place].series[key].provisional),
            }
            for place, values in found.items()
        ]
        chart: dict[str, Any] = {"key": key, "curves": packed_curves}
        if len(runs) == len(found) == 2:
            chart["apart"] = _apart([run.series[key] for run in runs], [found[0], found[1]], most)
        result.append(chart)
    return {"clocks": clocks.packed, "charts": result, "texts": _texts(runs, keys), "left_out": left_out}


def keys_of(runs: Sequence[Recorded], wanted: Collection[str] | None = None) -> Sequence[str]:
    """Return the keys of some runs, in the order first logged; None: all of them."""
    return [key for key in dict.fromkeys(key for run in runs for key in run.series) if wanted is None or key in wanted]


def begin_of(run: Recorded) -> float:
    """Return when a run's first entry was written, in seconds since 1970; 0 where that is not known."""
    known = run.run.table.times[np.isfinite(run.run.table.times)]
    return float(known.min()) if len(known) else 0.0


def numbers_of(runs: Sequence[Recorded], key: str) -> Mapping[int, Array]:
    """Return a key's values as float64 by the place of the run; none of a run that logs it as text."""
    found = {}
    for place, run in enumerate(runs):
        if (series := run.series.get(key)) is not None and len(series):
            value = series.value
            if value.dtype != object:
                found[place] = value.astype(np.float64, copy=False)
            elif all(isinstance(each, bool | int | float) for each in value):
                found[place] = np.array([as_float(each) for each in value])
    return found


def drawn_rows(values: Array, most: int, provisional: Array) -> tuple[Array, Array]:
    """Return which points of a curve are drawn, and which of these are provisional; the newest of those are drawn in any case.

    Args:
        values: float64, [points].
        most: about how many to draw, at least 4.
        provisional: rising places in `values`.

    Returns:
        int64, rising places in `values`, and in what is drawn.

    >>> rows, marks = drawn_rows(np.zeros(100), 4, np.array([30]))
    >>> 30 in rows, rows[marks].tolist()
    (True, [30])
    """
    rows = np.union1d(kept_rows(values, most), provisional[-_MOST_PROVISIONAL:])
    return rows, np.flatnonzero(np.isin(rows, provisional))


def _packed_curve(values: Array, most: int, provisional: Array) -> dict[str, Any]:
    rows, marks = drawn_rows(values, most, provisional)
    curve: dict[str, Any] = {"n": len(values), "y": packed(narrow(values[rows]))} | _packed_marks(marks)
    if len(rows) < len(values):
        curve["rows"] = packed(smallest(np.diff(rows, prepend=0)))
        curve["means"] = packed(narrow(means(values, int(np.clip(most // 4, *_MEANS)))))
    return curve


def _packed_marks(marks: Array) -> dict[str, str]:
    return {"provisional": packed(smallest(marks))} if len(marks) else {}


@SILENT
def _apart(series: Sequence[Series], values: Sequence[Array], most: int) -> dict[str, Any]:
    """Return how far two curves are apart where both have a value; NaN where only one has a finite one.

    It is provisional where a value is.
    """
    first, second = _shared(series[0].update, series[1].update)
    a, b = values[0][first], values[1][second]
    distance = np.abs(a / 2 - b / 2) / np.maximum(np.abs(a), np.abs(b)) * 2  # halves do not overflow
    distance[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    if not len(distance):
        return {"n": 0}
    is_part = np.isin(first, series[0].provisional) | np.isin(second, series[1].provisional)
    rows, marks = drawn_rows(distance, most, np.flatnonzero(is_part))
    apart: dict[str, Any] = {"n": len(distance), "equal": int(np.sum(distance == 0))}
    if apart["equal"] < len(distance):
        apart |= {"rows": packed(smallest(np.diff(first[rows], prepend=0))), "y": packed(narrow(distance[rows]))}
        apart |= _packed_marks(marks)
    return apart


def _shared(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the places in two rising arrays of what both have."""
    if np.array_equal(a, b):
        return np.arange(len(a)), np.arange(len(b))
    _, first, second = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    return first, second


def _texts(runs: Sequence[Recorded], keys: Collection[str] | None) -> list[dict[str, Any]]:
    texts = []
    for place, run in enumerate(runs):
        for key, series in run.series.items():
            is_wanted = keys is None or key in keys
            if is_wanted and series.value.dtype == object and any(isinstance(value, str) for value in series.value):
                newest = [[int(point.update), number(point.value)] for point in list(series)[-_MOST_TEXTS:]]
                texts.append({"run": place, "key": key, "n": len(series), "newest": newest})
    return texts
