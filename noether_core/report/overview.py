"""Say what a page draws of its runs: how they are called, what is wrong with them, and their curves."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from noether_core.emit.reader import RunReader
from noether_core.inspect.labels import path_labels
from noether_core.parity.divergence.result import Comparison
from noether_core.report.curves import charts
from noether_core.report.recorded import Recorded
from noether_core.text import message

_MOST_PROBLEMS = 50  # sentences of a run


def overview(
    runs: Sequence[Recorded], comparison: Comparison | None = None, keys: Collection[str] | None = None
) -> dict[str, Any]:
    """Return as plain data what every page has of some runs.

    Args:
        runs: what there is to draw of each.
        comparison: what gives two runs their names; None: their paths do.
        keys: whose curves are drawn; None: all.
    """
    readers = [run.run for run in runs]
    return {
        "where": _where(readers),
        "runs": [_about(run, label) for run, label in zip(runs, labels(readers, comparison), strict=True)],
        **charts(runs, keys),
    }


def _where(readers: Sequence[RunReader]) -> str:
    """Return the name of the directory that all runs are in, if it is one."""
    outer = {run.path.resolve().parent for run in readers}
    return message(outer.pop().name, 200) if len(outer) == 1 else ""


def _about(run: Recorded, label: str) -> dict[str, object]:
    problems = [message(problem, 1000) for problem in run.problems[:_MOST_PROBLEMS]]
    if run.run.superseded:
        problems.append(f"{run.run.superseded} entries of earlier starts are superseded by later ones")
    return {"label": message(label, 200), "problems": problems}


def labels(runs: Sequence[RunReader], comparison: Comparison | None = None) -> list[str]:
    """Return what each run is called: the end of its path that tells it from the others; of a comparison's two, its labels."""
    if comparison is not None and len(runs) == 2 and comparison.labels[0] != comparison.labels[1]:
        return list(comparison.labels)
    return path_labels([run.path for run in runs])
