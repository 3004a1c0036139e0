"""Show a table in the columns that the terminal has room for: no name and no number is broken, and none is cut."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from noether_core.text import sparkline

_NARROW = 70  # below, a table has no lines between its columns
_COURSE = (6, 24)  # cells of a course: at least, where nothing else is given up for it
ALWAYS = 100  # the rank of a column that is never left out


class Column(NamedTuple):
    """Say what a column is.

    Attributes:
        heading: what stands above it.
        rank: of those that have no room, the columns of the lowest rank are left out first.
        style: how its cells look.
        is_left: whether they begin at its left side.
    """

    heading: str
    rank: int = ALWAYS
    style: str = ""
    is_left: bool = False


class Course(NamedTuple):
    """Hold numbers of which a cell shows the course, in as many bars as there is room for."""

    values: Sequence[float] | np.ndarray[Any, Any]


Cell = str | Text | Course
Named = tuple[str, Sequence[Sequence[Cell]]]


class Fitted:
    """Show named rows, in as many of their columns as fit.

    Where the names take more than half of the width, each stands on a line of its own. What is wider than the terminal even so
    goes on beyond its edge, for the terminal to wrap, or on further lines.

    Args:
        heading: above the names.
        columns: beside them.
        groups: names, and the rows of each, with a cell for each column.
        widest: how many cells a course may have.
        is_folded: whether what is wider than the terminal goes on on further lines.
    """

    def __init__(
        self,
        heading: str,
        columns: Sequence[Column],
        groups: Sequence[Named],
        widest: int = _COURSE[1],
        *,
        is_folded: bool = False,
    ) -> None:
        self._heading, self._columns, self._groups, self._is_folded = heading, columns, groups, is_folded
        self._widths = [
            max([cell_len(column.heading), *(_width(row[at], widest) for _, rows in groups for row in rows)])
            for at, column in enumerate(columns)
        ]
        self._is_course = [
            any(isinstance(row[at], Course) for _, rows in groups for row in rows) for at in range(len(columns))
        ]
        self._names = max([cell_len(heading), *(cell_len(name) for name, _ in groups)])

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        widest = self._total([self._names, *self._widths], True)
        return Measurement(min(widest, options.max_width), widest)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        chosen = self._beside(width)
        if chosen is not None:
            yield self._table(chosen, width >= _NARROW)
        else:
            yield from self._stacked(width)

    def lines(self, console: Console) -> int:
        """Return how many lines of the terminal it takes, if it is folded."""
        width = console.width
        if self._beside(width) is not None:
            return sum(len(rows) for _, rows in self._groups) + (4 if width >= _NARROW else 2)
        return sum(len(line.wrap(console, width)) for line in self._stacked(width))

    def _beside(self, width: int) -> dict[int, int] | None:
        """Return the widths of the columns that stand beside the names; None if there is no room beside them."""
        has_lines = width >= _NARROW
        chosen = self._chosen(width, self._names, has_lines)
        fits = 2 * self._names <= width and self._total([self._names, *chosen.values()], has_lines) <= width
        return chosen if fits else None

    @staticmethod
    def _total(widths: Sequence[int], has_lines: bool) -> int:
        return sum(widths) + (3 * len(widths) + 1 if has_lines else 2 * len(widths))

    def _chosen(self, width: int, names: int, has_lines: bool) -> dict[int, int]:
        """Return the width of each column that is shown, by its place."""
        widths = dict(enumerate(self._widths))
        while True:
            over = self._total([names, *widths.values()], has_lines) - width
            for at in [at for at in widths if self._is_course[at] and over > 0]:
                narrower = max(min(_COURSE[0], widths[at]), widths[at] - over, cell_len(self._columns[at].heading))
                over -= widths[at] - narrower
                widths[at] = narrower
            ranks = [self._columns[at].rank for at in widths]
            if over <= 0 or min(ranks) >= ALWAYS:
                return widths
            widths = {at: self._widths[at] for at in widths if self._columns[at].rank > min(ranks)}

    def _table(self, chosen: Mapping[int, int], has_lines: bool) -> Table:
        if has_lines:
            table = Table(box=box.HEAVY_HEAD)
        else:
            table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
        table.add_column(self._heading, no_wrap=True, min_width=self._names)
        for at, room in chosen.items():
            heading, _, style, is_left = self._columns[at]
            side: JustifyMethod = "left" if is_left else "right"
            table.add_column(heading, justify=side, style=style, no_wrap=True, min_width=room)
        for name, rows in self._groups:
            for place, row in enumerate(rows):
                shown = (_shown(row[at], room) for at, room in chosen.items())
                table.add_row(Text(name if place == 0 else ""), *shown)
        return table

    def _stacked(self, width: int) -> Iterator[Text]:
        chosen = self._chosen(width, 0, False)
        yield self._line([Text(self._columns[at].heading, "bold") for at in chosen], chosen)
        for name, rows in self._groups:
            yield self._text(name, "bold")
            for row in rows:
                shown = [_shown(row[at], room, self._columns[at].style) for at, room in chosen.items()]
                yield self._line(shown, chosen)

    def _line(self, cells: Sequence[Text], chosen: Mapping[int, int]) -> Text:
        line = self._text()
        for text, (at, room) in zip(cells, chosen.items(), strict=True):
            gap = Text(" " * (room - text.cell_len))
            line.append("  ")
            line.append_text(text + gap if self._columns[at].is_left else gap + text)
        line.rstrip()
        return line

    def _text(self, text: str = "", style: str = "") -> Text:
        return Text(text, style, no_wrap=not self._is_folded, overflow="fold" if self._is_folded else "ignore")


def _width(cell: Cell, widest: int) -> int:
    return min(len(cell.values), widest) if isinstance(cell, Course) else cell_len(str(cell))


def _shown(cell: Cell, width: int, style: str = "") -> Text:
    if isinstance(cell, Course):
        return Text(sparkline(cell.values, width), style=style)
    return cell if isinstance(cell, Text) else Text(cell, style=style)
