"""Draw curves as a picture, with matplotlib: a small chart for each key, light, or dark where an SVG's viewer is."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from noether_core.dependencies import needing
from noether_core.errors import NoetherError
from noether_core.report.curves import axis_values, begin_of, drawn_rows, keys_of, numbers_of
from noether_core.report.recorded import Recorded
from noether_core.silence import SILENT
from noether_core.text import inert
from noether_core.thinning import means

Array = np.ndarray[Any, Any]
_NO_TIME = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}  # the same bytes each time
FORMATS = tuple(_NO_TIME)
_MOST_CHARTS = 120
_LARGEST = 1e300  # beyond, matplotlib finds no ticks for an axis; it is drawn as an infinity is
_POINTS = 1500  # of a curve
_MEANS = 400  # of a smooth one
_DENSE = 300  # points of a line that is drawn thin
_DOTS = 24  # points of a line that are dots too
_FEW = 160  # times, that a log scale spans
_NAME = 38  # characters of a key, a run or a title
_SIZE = (4.0, 2.7)  # inches of a chart
_TITLES = {"update": "update", "epoch": "epoch", "sample": "sample", "time": "seconds since its first entry"}
# each colour on white, and what takes its place where the viewer is dark; the page has the same
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#b4508b", "#3897cb", "#c08a00", "#6a51a3", "#6b7280")
_INK, _SOFT, _GRID, _GROUND = "#191c20", "#565d66", "#e6e6e2", "#ffffff"
_DARK = {
    **dict(
        zip(
            _SERIES,
            ("#5aaef0", "#ff9a4d", "#3ccf9f", "#e893c4", "#9bd4ff", "#efc24a", "#b6a2f4", "#a7aeb6"),
            strict=True,
        )
    ),
    _INK: "#e9ebed",
    _SOFT: "#a8afb7",
    _GRID: "#2b3036",
    _GROUND: "#181b1f",
}
_PROVISIONAL = "provisional: its interval was not over"
_LETTERS, _HANDLE = 12.5, 8  # of an inch; that a name's line takes
_HOLLOW: Any = {"linestyle": "none", "marker": "o", "markersize": 5, "markerfacecolor": _GROUND, "zorder": 3}
_DASHES = ("solid", (0, (5, 2.5)), (0, (1.5, 2)))
_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif'
_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "noether",
    "font.size": 9,
    "axes.formatter.useoffset": False,
    "text.parse_math": False,
    "text.usetex": False,
}


class View(NamedTuple):
    """Say how curves are drawn: over which axis, on which scale, and how smooth, in percent of the axis."""

    axis: str
    log: bool
    smooth: float


class _Line(NamedTuple):
    run: int
    x: Array
    y: Array
    provisional: Array  # places in these
    is_beneath: bool = False


@SILENT
def figure(runs: Sequence[Recorded], labels: Sequence[str], keys: Collection[str], view: View, ending: str) -> bytes:
    """Return a picture of some keys' curves, at most 120 keys.

    An SVG has its own ground and both lights' colours; its text is text, in the viewer's font.

    Args:
        runs: whose curves.
        labels: what they are called.
        keys: which are drawn.
        view: how.
        ending: one of `FORMATS`.

    Raises:
        MissingDependencyError: if matplotlib is not installed.
        NoetherError: if none of the keys has a number.
    """
    with needing("a picture of curves (a page needs nothing: -o plot.html)", "matplotlib"):
        import matplotlib as mpl
    charts = dict(_charts(runs, keys, view))
    if not charts:
        raise NoetherError(f"none of these keys has a number over {view.axis}; another axis may have been counted")
    file = io.BytesIO()
    with mpl.rc_context(_SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of missing glyphs, and of axes that have no extent
        _grid(charts, labels, view).savefig(file, format=ending, dpi=160, metadata=_NO_TIME[ending])
    return _for_both_lights(file.getvalue()) if ending == "svg" else file.getvalue()


def _grid(charts: Mapping[str, Sequence[_Line]], labels: Sequence[str], view: View) -> Any:
    """Return matplotlib's figure of a small chart for each key."""
    from matplotlib.figure import Figure

    shown, runs = list(charts)[:_MOST_CHARTS], len(labels)
    columns = min(3, len(shown)) if len(shown) != 4 else 2
    rows = math.ceil(len(shown) / columns)
    has_provisional = any(len(line.provisional) for key in shown for line in charts[key])
    named = (*(labels if runs > 1 else ()), *((_PROVISIONAL,) if has_provisional else ()))
    beside = _beside(named, _SIZE[0] * columns)
    size = (_SIZE[0] * columns, _SIZE[1] * rows + (0.1 + 0.2 * math.ceil(len(named) / beside) if named else 0))
    made = Figure(size, layout="constrained", facecolor=_GROUND)
    axes = list(made.subplots(rows, columns, squeeze=False).flat)
    for place, (key, each) in enumerate(zip(shown, axes, strict=False)):
        _draw(each, key, charts[key], view, runs)
        if place + columns >= len(shown):
            each.set_xlabel(_TITLES[view.axis], fontsize=8, color=_SOFT)
    for each in axes[len(shown) :]:
        each.remove()
    _name(made, labels, has_provisional, beside)
    if left_out := len(charts) - len(shown):
        made.supxlabel(f"and {left_out} more keys: choose some, or write a page", fontsize=8, color=_SOFT)
    return made


def _charts(runs: Sequence[Recorded], keys: Collection[str], view: View) -> Iterator[tuple[str, list[_Line]]]:
    """Yield the lines of each key."""
    begun = [begin_of(run) for run in runs]
    for key in keys_of(runs, keys):
        lines: list[_Line] = []
        for place, values in numbers_of(runs, key).items():
            values = np.where(np.abs(values) > _LARGEST, np.copysign(np.inf, values), values)
            series = runs[place].series[key]
            x = axis_values(series, view.axis, begun[place])
            if x is not None:
                lines += _lines(place, x, values, series.provisional, view.smooth)
        if lines:
            yield key, sorted(lines, key=lambda line: not line.is_beneath)


def _lines(run: int, x: Array, values: Array, provisional: Array, percent: float) -> list[_Line]:
    rows, marks = drawn_rows(values, _POINTS, provisional)
    width = percent / 100 * float(x[-1] - x[0])
    if width <= 0:
        return [_Line(run, x[rows], values[rows], marks)]
    if len(values) > _MEANS:
        edges = np.linspace(0, len(values), _MEANS + 1)
        places = np.interp((edges[1:] + edges[:-1] - 1) / 2, np.arange(len(x)), x)
        return [
            _Line(run, x[rows], values[rows], marks, True),
            _Line(run, places, _smooth(places, means(values, _MEANS), width), marks[:0]),
        ]
    return [_Line(run, x, values, provisional, True), _Line(run, x, _smooth(x, values, width), provisional[:0])]


def _smooth(x: Array, y: Array, width: float) -> Array:
    """Return the mean of the values around each, weighted by a Gaussian of this standard deviation; what is NaN stays so."""
    known = np.isfinite(y)
    weights = np.exp(-(((x[:, None] - x) / width) ** 2) / 2) * known
    return np.where(
        known, weights @ np.where(known, y, 0) / np.maximum(weights.sum(1), np.finfo(np.float64).tiny), np.nan
    )


def _draw(axes: Any, key: str, lines: Sequence[_Line], view: View, runs: int) -> None:
    is_log = view.log and any((line.y > 0).any() for line in lines)
    axes.set_title(_cut(key), fontsize=9.5, loc="left", color=_INK, fontweight="bold")
    for line in lines:
        y = _drawable(line.y, is_log)
        if line.is_beneath:
            axes.plot(line.x, y, color=_SERIES[line.run % len(_SERIES)], linewidth=0.8, alpha=0.3 if runs < 4 else 0.15)
            continue
        look = _look(line.run, runs)
        if len(y) > _DENSE and view.smooth == 0:
            look["linewidth"] *= 0.6
        dots = {"marker": "o", "markersize": look["linewidth"] + 1.7, "markeredgewidth": 0}
        few = np.isfinite(y).sum() <= _DOTS
        axes.plot(line.x, y, **look, **(dots if few else {}))
        if not few and (alone := _alone(y)).any():
            axes.plot(line.x[alone], y[alone], **{**look, "linestyle": "none"}, **dots)
    for line in lines:
        colour = _SERIES[line.run % len(_SERIES)]
        axes.plot(line.x[line.provisional], _drawable(line.y, is_log)[line.provisional], color=colour, **_HOLLOW)
        odd = line.x[~np.isfinite(line.y)] if line.is_beneath or view.smooth == 0 else line.x[:0]
        axes.plot(odd, [0.05] * len(odd), "x", transform=axes.get_xaxis_transform(), markersize=5, color=colour)
    if is_log:
        _make_log(axes)
    axes.set_facecolor(_GROUND)
    axes.grid(color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(which="both", length=0, labelsize=8, labelcolor=_SOFT)


def _drawable(y: Array, is_log: bool) -> Array:
    return np.where(np.isfinite(y) & ((y > 0) | (not is_log)), y, np.nan)


def _alone(y: Array) -> Array:
    """Return which values no line can show, for both beside are missing."""
    known: Array = np.pad(np.isfinite(y), 1)
    return known[1:-1] & ~known[:-2] & ~known[2:]


def _make_log(axes: Any) -> None:
    """Give an axis a log scale, numbered at powers of ten, of few powers at 2 and 5 times these too."""
    from matplotlib.ticker import LogLocator

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < _FEW else (1.0,)))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter("")


def _look(run: int, runs: int) -> dict[str, Any]:
    """Return how a run's lines look; of two that may well coincide, the first is a broad band and the second a line on it."""
    is_broad = runs == 2 and run == 0
    return {
        "color": _SERIES[run % len(_SERIES)],
        "linestyle": _DASHES[run // len(_SERIES) % len(_DASHES)],
        "linewidth": 4.5 if is_broad else 1.5 if runs <= 8 else 1.1,
        "alpha": 0.5 if is_broad else 1.0,
    }


def _name(made: Any, labels: Sequence[str], has_provisional: bool, beside: int) -> None:
    """Say which line is whose, and what a hollow mark is, so many beside each other."""
    from matplotlib.lines import Line2D

    named = labels if len(labels) > 1 else ()
    handles = [Line2D([], [], **_look(place, len(labels))) for place in range(len(named))]
    names = [f" {_cut(label)}" for label in named]  # matplotlib would hide one that begins with an underscore
    if has_provisional:
        handles.append(Line2D([], [], color=_SOFT, **_HOLLOW))
        names.append(_PROVISIONAL)
    if handles:
        made.legend(handles, names, loc="outside upper left", ncols=beside, frameon=False, labelcolor=_INK)


def _beside(names: Sequence[str], width: float) -> int:
    """Return how many names fit beside each other into so many inches."""
    longest = max((len(_cut(name)) for name in names), default=0)
    return int(np.clip(width * _LETTERS // (longest + _HANDLE), 1, 4))


def _cut(name: str) -> str:
    text = inert(name) if name.strip() else repr(name)
    return text if len(text) <= _NAME else f"{text[: _NAME // 3]}…{text[-(_NAME - _NAME // 3) :]}"


def _for_both_lights(picture: bytes) -> bytes:
    """Return an SVG that takes dark colours where the viewer does, as its style sheet may: over what each element says."""
    text = picture.decode("utf-8")
    rules = [
        f'[style*="{name}: {colour}"] {{ {name}: {dark} !important }}'
        for colour, dark in _DARK.items()
        for name in ("fill", "stroke")
    ]
    style = f"text {{ font-family: {_FONT} !important }} @media (prefers-color-scheme: dark) {{ {' '.join(rules)} }}"
    return re.sub(r"(<defs>\s*<style[^>]*>)", lambda found: f"{found[1]}{style}", text, count=1).encode("utf-8")
