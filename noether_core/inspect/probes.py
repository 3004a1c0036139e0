"""Show what a run probed: a row for each key, with the course of its norm."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from noether_core.emit.reader import RunReader
from noether_core.inspect.fitted import ALWAYS, Cell, Column, Course, Fitted, Named
from noether_core.probes.recorded import RecordedTraining, is_probes
from noether_core.text import inert, number

MOST_KEYS = 2000  # rows
_COLUMNS = (
    Column("updates", 1, "dim"),
    Column("values", 3),
    Column("mean", 4),
    Column("std", 4),
    Column("norm", ALWAYS, "bold"),
    Column("min", 5),
    Column("max", 5),
    Column("norm's course", 6, "cyan", is_left=True),
    Column("at", 2, "dim", is_left=True),
)


def probes_table(run: RunReader) -> list[RenderableType] | None:
    """Return a table of a run's probes, with what to say about it; None if it has none that stand, nor damaged ones."""
    if not any(map(is_probes, [*run.arrays, *run.superseded_arrays])):
        return None
    training = RecordedTraining(run)
    problems = training.problems[len(training.beside) :]
    keys, updates, arrays = training.all_keys, training.updates(), training.array_updates()
    if not keys and not problems:  # they are superseded
        return None
    about = f"{len(keys):,} keys at {len(updates):,} updates{_from_to(updates)}, arrays at {len(arrays):,}{_from_to(arrays)}"
    groups: list[Named] = []
    for key in keys[:MOST_KEYS]:
        found, columns = training.statistics_columns(key)
        row: list[Cell] = [""] * len(_COLUMNS)
        if len(found):
            last = columns.at(-1)
            reals = (number(each) for each in (last.mean, last.std, last.norm, last.min, last.max))
            row = [str(len(found)), f"{last.count:,}", *reals, Course(columns.norm), f"update {found[-1]}"]
        groups.append((inert(key), [row]))
    parts: list[RenderableType] = [Text(f"probes: {about if keys else 'none that can be read'}", style="italic")]
    if keys:
        parts.append(Fitted("key", _COLUMNS, groups))
    left_out = [f"{len(keys) - MOST_KEYS:,} more keys"] if len(keys) > MOST_KEYS else []
    if problems or left_out:
        parts.append(Text("; ".join([*left_out, *(f"damaged, left out: {inert(problem)}" for problem in problems)])))
    return parts


def _from_to(updates: Sequence[int]) -> str:
    return f" ({updates[0]} to {updates[-1]})" if updates else ""
