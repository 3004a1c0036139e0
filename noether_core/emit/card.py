"""Draw a run for a notebook: a small table of its keys with their curves, as HTML with inline SVG and no script."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from noether_core.emit.columns import Series
from noether_core.text import as_float, inert, message, number
from noether_core.thinning import kept_rows

_MOST_KEYS = 24
_SIZE = (220, 36)
_POINTS = 240  # of a curve
_LINE = "#3f8fd0"  # on white and on black
_ODD = "#e0603a"
_CELL = 'style="text-align:{};padding:2px 14px 2px 0;border:0;background:none;vertical-align:middle;white-space:nowrap"'
_NAME = (
    'style="text-align:left;padding:2px 14px 2px 0;border:0;background:none;vertical-align:middle;white-space:normal;'
    'overflow-wrap:anywhere;min-width:120px;max-width:360px"'
)


def card(title: str, about: str, series: Mapping[str, Series]) -> str:
    """Return a fragment of HTML that shows a run in a notebook, in the notebook's own colours.

    It loads nothing and runs nothing; keys and texts are text in it. Of many keys it shows the first 24.

    Args:
        title: such as the run's path.
        about: a line of words.
        series: what was logged, by key.

    >>> import numpy as np
    >>> count = np.arange(3)
    >>> text = card("runs/x", "", {"<i>": Series("<i>", count, count, count, count, np.array([3.0, 1.0, 2.0]))})
    >>> "<i>" in text, "&lt;i&gt;" in text, "<script" in text
    (False, True, False)
    """
    rows = "".join(_row(key, each) for key, each in list(series.items())[:_MOST_KEYS] if len(each))
    head = "".join(f"<th {_CELL.format(side)}>{name}</th>" for name, side in _HEAD)
    more = len(series) - _MOST_KEYS
    rest = f"<div>and {more} more keys</div>" if more > 0 else ""
    table = f'<table style="border-collapse:collapse;font-size:12px"><tr>{head}</tr>{rows}</table>' if rows else ""
    scrolled = f'<div style="overflow-x:auto">{table}</div>' if table else ""
    return f'<div><b style="overflow-wrap:anywhere">{_text(title)}</b> {_text(about)}{scrolled}{rest}</div>'


_HEAD = (
    ("key", "left"),
    ("course", "left"),
    ("last", "right"),
    ("min", "right"),
    ("max", "right"),
    ("at update", "right"),
)


def _row(key: str, series: Series) -> str:
    values = series.value
    curve, low, high = "", "", ""
    if values.dtype != object or all(isinstance(value, bool | int | float) for value in values):
        numbers = (
            np.array([as_float(value) for value in values]) if values.dtype == object else values.astype(np.float64)
        )
        curve = _curve(series.update.astype(np.float64), numbers)
        if len(known := numbers[~np.isnan(numbers)]):
            low, high = number(float(known.min())), number(float(known.max()))
    update = f"{series.update[-1]}{', provisional' if len(values) - 1 in series.provisional else ''}"
    cells = (curve, *(_text(each) for each in (number(values.item(-1)), low, high, update)))
    shown = "".join(f"<td {_CELL.format(side)}>{cell}</td>" for cell, (_, side) in zip(cells, _HEAD[1:], strict=True))
    return f"<tr><td {_NAME}>{_text(key)}</td>{shown}</tr>"


def _curve(x: np.ndarray[tuple[int], np.dtype[np.float64]], y: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    """Return a curve as SVG: a line over what is finite, a gap and a mark where a value is not; every extreme is kept."""
    width, height = _SIZE
    rows = kept_rows(y, _POINTS)
    x, y = x[rows], y[rows]
    known = np.isfinite(y)
    low, high = (float(y[known].min()), float(y[known].max())) if known.any() else (0.0, 0.0)
    span = high / 2 - low / 2  # halves do not overflow
    across = (x - x[0]) / ((x[-1] - x[0]) or 1.0) * (width - 6) + 3
    share = (np.where(known, y, low) / 2 - low / 2) / span if span else np.full(len(y), 0.5)
    down = (height - 4) - share * (height - 8)
    path, is_open = [], False
    for place, (at, depth, is_known) in enumerate(zip(across.tolist(), down.tolist(), known.tolist(), strict=True)):
        if is_known:
            is_alone = not is_open and not (place + 1 < len(known) and known[place + 1])
            path.append(f"{'L' if is_open else 'M'}{at:.1f} {depth:.1f}{'h.01' if is_alone else ''}")
        is_open = is_known
    odd = "".join(f"M{at:.1f} {height - 5}v5" for at in across[~known].tolist())
    return (
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" fill="none" stroke-width="1.5"'
        f' stroke-linecap="round" stroke-linejoin="round"><path d="{"".join(path)}" stroke="{_LINE}"/>'
        f'<path d="{odd}" stroke="{_ODD}"/></svg>'
    )


def _text(text: str) -> str:
    return escape(inert(message(text, 200)))
