"""Show a run directory: its series as a table with sparklines, and its saved arrays."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from noether_core.emit.reader import Point, RunReader
from noether_core.errors import RunFormatError
from noether_core.text import inert, number, sparkline


def show_run(run: RunReader) -> RenderableType:
    """Return what `noether-parity show` prints."""
    parts: list[RenderableType] = [_series_table(run)]
    if run.arrays:
        parts.append(_arrays_table(run))
    if run.superseded:
        parts.append(Text(f"{run.superseded} entries of earlier starts are superseded by later ones.", style="dim"))
    parts += [Text(f"damaged, left out: {inert(problem)}", style="bold red") for problem in run.problems]
    return Group(*parts)


def _series_table(run: RunReader) -> Table:
    table = Table(title=Text(inert(str(run.path)), style="bold"), title_justify="left")
    for heading in ("key", "points", "first", "last", "min", "max", "course", "at"):
        is_number = heading in {"points", "first", "last", "min", "max"}
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold")
    for key, points in run.series.items():
        table.add_row(*map(Text, _series_row(key, points)))
    if not run.series:
        table.caption = "nothing is logged yet"
    return table


def _series_row(key: str, points: list[Point]) -> tuple[str, ...]:
    first, last = points[0], points[-1]
    numbers = [point.value for point in points if isinstance(point.value, bool | int | float)]
    if len(numbers) < len(points):
        return (
            inert(key),
            str(len(points)),
            number(first.value),
            number(last.value),
            "",
            "",
            "",
            f"update {last.update}",
        )
    known = [value for value in numbers if value == value]  # without NaN
    extremes = (number(min(known)), number(max(known))) if known else ("", "")
    course = sparkline(numbers)
    return (
        inert(key),
        str(len(points)),
        number(first.value),
        number(last.value),
        *extremes,
        course,
        f"update {last.update}",
    )


def _arrays_table(run: RunReader) -> Table:
    table = Table(title="saved arrays", title_justify="left")
    for heading in ("interval", "iteration", "array", "dtype", "shape"):
        table.add_column(heading, overflow="fold")
    for file in run.arrays:
        try:
            arrays = file.load()
        except RunFormatError as error:
            problem = Text(inert(str(error)), style="bold red")
            table.add_row(Text(inert(file.interval)), str(file.iteration), problem, "", "")
            continue
        for name, array in arrays.items():
            row = (inert(file.interval), str(file.iteration), inert(name), str(array.dtype), str(array.shape))
            table.add_row(*map(Text, row))
    return table
