"""Measure this tree beside another revision of it, in processes that take turns: `python -m benchmarks.before REVISION`."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
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


def _started(tree: Path) -> subprocess.Popen[str]:
    # -P: the folder of the program, which has modules called `memory` and `report`, stays off the path
    command = [sys.executable, "-P", "-W", "ignore", str(ROOT / "benchmarks" / "one_tree.py")]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    process = subprocess.Popen(
        command, env=environment, cwd=tree, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    found = Path(process.stdout.readline().strip())  # type: ignore[union-attr]
    if found != tree:
        process.kill()
        raise RuntimeError(f"{tree} was to be measured, but Python imported {found}; is PYTHONPATH ignored?")
    return process


def _asked(process: subprocess.Popen[str]) -> dict[str, float]:
    """Return the next times of a process; none after the last."""
    print("go on", file=process.stdin, flush=True)
    line = process.stdout.readline()  # type: ignore[union-attr]
    if not line:
        raise RuntimeError(f"{process.args} ended; what it wrote stands above")
    return json.loads(line)  # type: ignore[no-any-return]


def compare(revision: str, rounds: int) -> Rows:
    """Return what was measured: the medians in µs before and now, and how many times as long it takes now.

    Args:
        revision: what git calls the other revision.
        rounds: how many processes each of the two gets; they answer in turns, and are idle else.
    """
    before: dict[str, list[float]] = defaultdict(list)
    now: dict[str, list[float]] = defaultdict(list)
    with checked_out(revision) as tree:
        for _ in range(rounds):
            with _started(tree) as old, _started(ROOT) as new:
                while found := _asked(old):
                    for times, answer in ((before, found), (now, _asked(new))):
                        for name, time in answer.items():
                            times[name].append(time)
    return {name: _compared(before[name], now[name]) for name in before}


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
