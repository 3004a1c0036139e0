"""List the runs in a folder: state, last update, newest loss, age; those written last come first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from noether_core.inspect.fitted import ALWAYS, Cell, Column, Fitted
from noether_core.inspect.newest import Newest, age
from noether_core.inspect.show import line, shown
from noether_core.text import inert

STYLES = {"running": "bold green", "killed": "bold red", "failed": "bold red", "elsewhere": "yellow", "empty": "dim"}
_COLUMNS = (
    Column("state", 6, is_left=True),
    Column("update", 5),
    Column("epoch", 2, "dim"),
    Column("newest", ALWAYS, "bold"),
    Column("of", 4, "cyan", is_left=True),
    Column("age", 7, "dim"),
)


def show_runs(folder: Path, runs: Sequence[Newest]) -> RenderableType:
    """Return what `noether-parity show` prints of a folder of runs."""
    ordered = sorted(runs, key=lambda run: run.time or 0.0, reverse=True)
    groups = [(inert(str(run.path.relative_to(folder))), [_cells(run)]) for run in ordered]
    return Group(line(str(folder), "bold"), Fitted("run", _COLUMNS, groups))


def _cells(run: Newest) -> Sequence[Cell]:
    main = run.main_value()
    counts = [str(run.entry[unit]) if run.entry.get(unit) else "" for unit in ("update", "epoch")]
    value: tuple[Cell, Cell] = ("", "") if main is None else (shown(main[1]), inert(main[0]))
    return [Text(run.state, style=STYLES.get(run.state, "")), *counts, *value, age(run.time)]
