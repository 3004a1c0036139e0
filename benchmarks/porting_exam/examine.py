"""Train a pair into run directories, with its twins, and ask the tool."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

from benchmarks.porting_exam.bug import Bug, Finding, Framework
from benchmarks.porting_exam.jax_side import JaxSide
from benchmarks.porting_exam.pair import Pair
from benchmarks.porting_exam.torch_side import TorchSide
from benchmarks.results import Correct
from noether_core.parity.between_runs import Twin, compare_trainings, find_twins, paired, transplant
from noether_core.parity.between_runs.step import as_step
from noether_core.parity.between_runs.twin_check import problem_of_twin
from noether_core.probes import read_training
from noether_core.twin import VARIABLE

TWINS = 2


@cache
def side_of(pair: Pair, framework: Framework, bug: Bug | None = None) -> TorchSide | JaxSide:
    """Return a side; what it has compiled serves the run and its twins."""
    options = {**pair.options, **(bug.changes if bug is not None else {})}
    return TorchSide(pair, options) if framework == "torch" else JaxSide(pair, options)


def recorded(folder: Path, pair: Pair, framework: Framework, seed: int = 0, bug: Bug | None = None) -> Path:
    """Return the run directory of a training, which is made with its twins if it is not there, or was cut off."""
    run = folder / f"{pair.name if bug is None else bug.id}-{framework}-{seed}"
    done = run.with_name(f"{run.name}.done")
    if not done.exists():
        shutil.rmtree(run, ignore_errors=True)
        side = side_of(pair, framework, bug)
        side.train(run, seed)
        for number in range(1, TWINS + 1):  # as `noether-parity calibrate` does, but in this process
            twin = Twin(run, run / "twins" / str(number), number, rows=number % 2 == 0)
            with _being_made(twin):
                side.train(run, seed)
            if not problem_of_twin(read_training(run), read_training(twin.path), rows=twin.rows):
                replace(twin, is_made=True).write()
        done.touch()
    return run


@contextmanager
def _being_made(twin: Twin) -> Iterator[None]:
    twin.write()
    os.environ[VARIABLE] = str(twin.path)
    try:
        yield
    finally:
        del os.environ[VARIABLE]


def compare_correct(folder: Path, pair: Pair, seed: int) -> Correct:
    """Compare a correct pair."""
    found = compare_trainings(recorded(folder, pair, "torch", seed), recorded(folder, pair, "jax", seed))
    return Correct(pair.name, seed, found.outcome, found.sentence)


def examine(folder: Path, bug: Bug) -> Finding:
    """Plant a bug; compare the correct side with the one that has it, in that order."""
    correct: Framework = "jax" if bug.side == "torch" else "torch"
    a, b = recorded(folder, bug.pair, correct), recorded(folder, bug.pair, bug.side, bug=bug)
    start = time.perf_counter()
    found = compare_trainings(a, b)
    seconds = time.perf_counter() - start
    pair = paired(read_training(a), read_training(b), twins=[twin.path for run in (a, b) for twin in find_twins(run)])
    steps = as_step(side_of(bug.pair, correct).step), as_step(side_of(bug.pair, bug.side, bug).step)
    culprit = transplant(*steps, pair.a, pair.b, found, pair.noise).culprit
    where = (None, "") if found.first is None else (found.first.update, found.first.key)
    causes = tuple(cause.id for cause in found.causes)
    return Finding(bug.id, *where, causes, culprit, found.sentence, round(seconds, 1))
