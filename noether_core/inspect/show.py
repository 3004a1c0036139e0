"""Show a run directory: its series as a table with sparklines, and its saved arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from noether_core.emit.array_files import ArrayFile
from noether_core.emit.columns import Series
from noether_core.emit.reader import RunReader
from noether_core.errors import RunFormatError
from noether_core.inspect.probes import probes_table
from noether_core.probes.recorded import is_probes
from noether_core.text import inert, number, sparkline


def show_run(run: RunReader) -> RenderableType:
    """Return what `noether-parity show` prints."""
    parts: list[RenderableType] = [_series_table(run)]
    if (probes := probes_table(run)) is not None:
        parts.append(probes)
    if arrays := [file for file in run.arrays if not is_probes(file)]:
        parts.append(_arrays_table(arrays))
    if run.superseded:
        parts.append(Text(f"{run.superseded} entries of earlier starts are superseded by later ones.", style="dim"))
    parts += [Text(f"damaged, left out: {inert(problem)}", style="bold red") for problem in run.problems]
    return Group(*parts)


def _series_table(run: RunReader) -> Table:
    table = Table(title=Text(inert(str(run.path)), style="bold"), title_justify="left")
    for heading in ("key", "points", "first", "last", "min", "max", "course", "at"):
        is_number = heading in {"points", "first", "last", "min", "max"}
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for series in run.series.values():
        table.add_row(*map(Text, _series_row(series)))
    if not run.series:
        table.caption = "nothing is logged yet"
    return table


def _series_row(series: Series) -> tuple[str, ...]:
    values, update = series.value, int(series.update[-1])
    course = ("", "", "")
    if values.dtype != object or all(isinstance(value, bool | int | float) for value in values):
        course = (*_extremes(values), sparkline(values))
    ends = number(values.item(0)), number(values.item(-1))
    return inert(series.key), str(len(values)), *ends, *course, f"update {update}"


def _extremes(values: np.ndarray[Any, Any]) -> tuple[str, str]:
    known = values[values == values]  # without NaN
    if not len(known):
        return "", ""
    return number(known.item(known.argmin())), number(known.item(known.argmax()))


def _arrays_table(files: Sequence[ArrayFile]) -> Table:
    table = Table(title="saved arrays", title_justify="left")
    for heading in ("interval", "iteration", "array", "dtype", "shape"):
        table.add_column(heading, overflow="fold")
    for file in files:
        try:
            headers = file.headers()
        except RunFormatError as error:
            problem = Text(inert(str(error)), style="bold red")
            table.add_row(Text(inert(file.interval)), str(file.iteration), problem, "", "")
            continue
        for name, header in headers.items():
            row = (inert(file.interval), str(file.iteration), inert(name), str(header.dtype), str(header.shape))
            table.add_row(*map(Text, row))
    return table
