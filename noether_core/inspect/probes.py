"""Show what a run probed: a row for each key, with the course of its norm."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from noether_core.emit.reader import RunReader
from noether_core.probes.recorded import RecordedTraining, is_probes
from noether_core.text import inert, number, sparkline

MOST_KEYS = 2000  # rows


def probes_table(run: RunReader) -> Table | None:
    """Return a table of a run's probes; None if it has none."""
    if not any(map(is_probes, [*run.arrays, *run.superseded_arrays])):
        return None
    training = RecordedTraining(run)
    keys, updates, arrays = training.all_keys, training.updates(), training.array_updates()
    about = f"{len(keys):,} keys at {len(updates):,} updates{_from_to(updates)}, arrays at {len(arrays):,}{_from_to(arrays)}"
    table = Table(title=Text(f"probes: {about}"), title_justify="left")
    for heading in ("key", "updates", "values", "mean", "std", "norm", "min", "max", "norm's course", "at"):
        is_text = heading in ("key", "norm's course", "at")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for key in keys[:MOST_KEYS]:
        found, columns = training.statistics_columns(key)
        if not len(found):
            table.add_row(Text(inert(key)))
            continue
        last = columns.at(-1)
        reals = (number(each) for each in (last.mean, last.std, last.norm, last.min, last.max))
        row = (inert(key), str(len(found)), f"{last.count:,}", *reals, sparkline(columns.norm), f"update {found[-1]}")
        table.add_row(*map(Text, row))
    problems = training.problems[len(run.problems) :]
    left_out = [f"{len(keys) - MOST_KEYS:,} more keys"] if len(keys) > MOST_KEYS else []
    if problems or left_out:
        table.caption = Text("; ".join([*left_out, *(f"damaged, left out: {inert(problem)}" for problem in problems)]))
    return table


def _from_to(updates: Sequence[int]) -> str:
    return f" ({updates[0]} to {updates[-1]})" if updates else ""
