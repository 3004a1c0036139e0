"""Measure this tree beside another revision of it, in processes that take turns: `python -m benchmarks.before REVISION`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks.measure import ratio

ROOT = Path(__file__).parents[1]
Rows = Mapping[str, tuple[float, float, float]]


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """Give a tree of a revision, which is removed afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        tree = Path(directory).resolve() / "tree"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", tree, revision], cwd=ROOT, check=True)
        try:
            yield tree
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], cwd=ROOT, check=True)


def _times_of(tree: Path) -> dict[str, float]:
    # -P: the folder of the program, which has modules called `memory` and `report`, stays off the path
    command = [sys.executable, "-P", "-W", "ignore", str(ROOT / "benchmarks" / "one_tree.py")]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, cwd=tree, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout)
    if Path(found["packages"]) != tree:
        raise RuntimeError(
            f"{tree} was to be measured, but Python imported {found['packages']}; is PYTHONPATH ignored?"
        )
    return found["times"]  # type: ignore[no-any-return]


def compare(revision: str, rounds: int) -> Rows:
    """Return what was measured: the medians in µs before and now, and how many times as long it takes now.

    Args:
        revision: what git calls the other revision.
        rounds: how many processes each of the two gets, in turns.
    """
    before: list[dict[str, float]] = []
    now: list[dict[str, float]] = []
    with checked_out(revision) as tree:
        for _ in range(rounds):
            before.append(_times_of(tree))
            now.append(_times_of(ROOT))
    return {name: _compared([each[name] for each in before], [each[name] for each in now]) for name in before[0]}


def _compared(before: Sequence[float], now: Sequence[float]) -> tuple[float, float, float]:
    return median(before), median(now), ratio(before, now)


def main() -> None:
    """Print the table."""
    from benchmarks.report import Report  # it brings Matplotlib

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("revision")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    Report({}).before(given.revision, compare(given.revision, given.rounds))


if __name__ == "__main__":
    main()
