"""Show a run directory: its series as a table with sparklines, and its saved arrays; or several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from noether_core.emit.array_files import ArrayFile
from noether_core.emit.columns import Series
from noether_core.emit.reader import RunReader
from noether_core.errors import NoetherError, RunFormatError
from noether_core.inspect.fitted import ALWAYS, Cell, Column, Course, Fitted, Named
from noether_core.inspect.labels import path_labels
from noether_core.inspect.probes import probes_table
from noether_core.probes.recorded import is_probes
from noether_core.text import as_float, has_words, inert, message, number

COLUMNS = (
    Column("points", 1, "dim"),
    Column("first", 3),
    Column("last", ALWAYS, "bold"),
    Column("min", 4),
    Column("max", 4),
    Column("course", 5, "cyan", is_left=True),
    Column("at", 2, "dim", is_left=True),
)
_ARRAYS = (
    Column("iteration", is_left=True),
    Column("array", is_left=True),
    Column("dtype", 1, is_left=True),
    Column("shape", 2, is_left=True),
)


def show_run(run: RunReader, keys: Sequence[str] = ()) -> RenderableType:
    """Return what `noether-parity show` prints of a run.

    Args:
        run: what `read_run` gave.
        keys: words of the keys that are shown, as `has_words` has them; none: all keys.
    """
    series = _wanted([run], keys)
    parts: list[RenderableType] = [line(str(run.path), "bold")]
    if series:
        parts.append(Fitted("key", COLUMNS, [(inert(key), [series_cells(run.series[key])]) for key in series]))
    else:
        parts.append(Text("nothing is logged yet", style="italic"))
    if (probes := probes_table(run)) is not None:
        parts += probes
    if arrays := [file for file in run.arrays if not is_probes(file)]:
        parts += _arrays_table(arrays)
    if run.superseded:
        parts.append(Text(f"{run.superseded} entries of earlier starts are superseded by later ones.", style="dim"))
    parts += [Text(f"damaged, left out: {inert(problem)}", style="bold red") for problem in run.problems]
    return Group(*parts)


def show_together(runs: Sequence[RunReader], keys: Sequence[str] = ()) -> RenderableType:
    """Return what `noether-parity show` prints of several runs: of each key a row for each run that logged it.

    Of two runs, `apart` is |a − b| / max(|a|, |b|) of the newest values, where both were logged at one update.
    """
    labels = path_labels([run.path for run in runs])
    columns = (
        Column("run", is_left=True),
        *COLUMNS[:3],
        *([Column("apart", 6)] if len(runs) == 2 else []),
        *COLUMNS[3:],
    )
    groups: list[Named] = []
    for key in _wanted(runs, keys):
        rows: list[list[Cell]] = []
        for label, run in zip(labels, runs, strict=True):
            if key in run.series:
                cells: list[Cell] = [inert(label), *series_cells(run.series[key])]
                if len(runs) == 2:
                    cells.insert(4, _apart([each.series.get(key) for each in runs]) if rows else "")
                rows.append(cells)
        groups.append((inert(key), rows))
    parts: list[RenderableType] = [line(str(run.path), "bold") for run in runs]
    problems = sum(len(run.problems) for run in runs)
    note = [Text(f"{problems} damaged or lost; show each run alone for what", style="bold red")] if problems else []
    return Group(*parts, Fitted("key", columns, groups), *note)


def line(text: str, style: str = "") -> Text:
    """Return a line of text that is shown whole, for the terminal to wrap."""
    return Text(inert(text), style=style, no_wrap=True, overflow="ignore")


def _wanted(runs: Sequence[RunReader], words: Sequence[str]) -> list[str]:
    logged = list(dict.fromkeys(key for run in runs for key in run.series))
    found = [key for key in logged if has_words(key, words)]
    if logged and not found:
        some = ", ".join(message(key, 80) for key in logged[:5])
        raise NoetherError(
            f"no key has the words {', '.join(map(repr, words))}; {len(logged)} are logged, such as {some}"
        )
    return found


def series_cells(series: Series) -> list[Cell]:
    """Return a series' cells, for `COLUMNS`."""
    values, update = series.value, int(series.update[-1])
    course: tuple[Cell, Cell, Cell] = ("", "", "")
    if values.dtype != object or all(isinstance(value, bool | int | float) for value in values):
        numbers = values if values.dtype != object else np.array([as_float(value) for value in values])
        course = (*_extremes(values), Course(numbers))
    ends = shown(values.item(0)), shown(values.item(-1))
    is_part = len(values) - 1 in series.provisional
    return [str(len(values)), *ends, *course, f"update {update}{', provisional' if is_part else ''}"]


def shown(value: Any) -> Cell:
    """Return the cell of a value; one that is not finite stands out."""
    is_odd = isinstance(value, float) and not np.isfinite(value)
    return Text(number(value), style="bold red") if is_odd else number(value)


def _extremes(values: np.ndarray[Any, Any]) -> tuple[str, str]:
    known = values[values == values]  # without NaN
    if not len(known):
        return "", ""
    return number(known.item(known.argmin())), number(known.item(known.argmax()))


def _apart(series: Sequence[Series | None]) -> Cell:
    if any(each is None or each.value.dtype == object for each in series):
        return ""
    a, b = (each for each in series if each is not None)
    if a.update[-1] != b.update[-1]:
        return ""
    first, second = float(a.value[-1]), float(b.value[-1])
    if first == second:
        return Text("=", style="green")
    apart = abs(first / 2 - second / 2) / max(abs(first), abs(second)) * 2
    return f"{apart:.2g}"


def _arrays_table(files: Sequence[ArrayFile]) -> list[RenderableType]:
    groups: list[Named] = []
    for file in files:
        try:
            headers = file.headers()
        except RunFormatError as error:
            problem = Text(inert(str(error)), style="bold red")
            groups.append((inert(file.interval), [[str(file.iteration), problem, "", ""]]))
            continue
        groups += [
            (inert(file.interval), [[str(file.iteration), inert(name), str(header.dtype), str(header.shape)]])
            for name, header in headers.items()
        ]
    return [Text("saved arrays", style="italic"), Fitted("interval", _ARRAYS, groups)]
