"""Show two runs side by side, and say in a sentence how far they are apart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from fractions import Fraction

from rich.table import Table
from rich.text import Text

from noether_core.parity.log_differences import Difference
from noether_core.text import inert, number


def side_by_side(title: str, differences: Sequence[Difference], names: tuple[str, str]) -> Table:
    """Return a table with the last value of each key in both runs and their distance in units in the last place."""
    table = Table(title=Text(inert(title), style="bold"), title_justify="left")
    table.add_column("key", overflow="fold")
    for heading in ("update", *names, "ulps apart"):
        table.add_column(heading, justify="right")
    latest = {difference.key: difference for difference in differences}
    for row in latest.values():
        values = ("-" if value is None else _full(value) for value in (row.a, row.b))
        style = "green" if row.ulps == 0 else ""
        apart = Text(_finite(row.ulps, ","), style=style)
        table.add_row(Text(inert(row.key)), str(row.update), *map(Text, values), apart)
    return table


def _full(value: object) -> str:
    return f"{value:.9g}" if isinstance(value, float) else number(value)


def _finite(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "∞"


def drift_sentence(differences: Sequence[Difference], names: tuple[str, str]) -> str:
    """Say how far two trainings drifted apart, from their first shared update to their last.

    NaN or an infinity beside another number is infinitely far.
    """
    both = [row for row in differences if isinstance(row.a, int | float) and isinstance(row.b, int | float)]
    if not both:
        return f"{names[0]} and {names[1]} logged no number in common."
    first, last = min(row.update for row in both), max(row.update for row in both)
    equal = sum(row.ulps == 0 for row in both)
    widest = max(both, key=_relative)
    early, late = (statistics.median(row.ulps for row in both if row.update == update) for update in (first, last))
    return (
        f"Trained independently, from the same weights on the same batches, {names[0]} and {names[1]} drifted from a median"
        f" of {_finite(early, ',.0f')} ulps at update {first} to {_finite(late, ',.0f')} at update {last}; {equal} of"
        f" {len(both)} numbers were equal, and the widest relative difference was {_finite(_relative(widest), '.2g')}"
        f" ({inert(widest.key)}, update {widest.update})."
    )


def _relative(row: Difference) -> float:
    """Return |a - b| / max(|a|, |b|), at most 2; infinite where the distance is."""
    if row.ulps == 0 or not math.isfinite(row.ulps):
        return row.ulps
    a, b = Fraction(row.a), Fraction(row.b)  # floats' difference may overflow, and large ints' vanish
    return float(abs(a - b) / max(abs(a), abs(b)))
