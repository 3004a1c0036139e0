"""Ask the tool about trainings with a planted bug, and about correct pairs, and see whether it is right."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.porting_bugs.families import WAYS
from benchmarks.porting_bugs.findings import Finding
from benchmarks.porting_bugs.record import TWINS, record, twin
from benchmarks.porting_bugs.steps import step_function
from benchmarks.porting_bugs.truth import Bug, Way
from benchmarks.results import Correct
from noether_core.parity.between_runs.transplant import transplant
from noether_core.parity.divergence import MemoryTraining, Noise, compare
from noether_core.parity.divergence.causes import causes_of


@dataclass(frozen=True)
class Pair:
    """Hold a training of each framework, and the noise of their twins."""

    torch: MemoryTraining
    jax: MemoryTraining
    noise: Noise


def pair(family: str, seed: int = 0, bug: Bug | Way | None = None, twins: int = TWINS) -> Pair:
    """Record a pair, and as many twins of either: of the side with a bug, the twins have it too, as a user's would."""
    sides = {}
    for framework in ("torch", "jax"):
        planted = bug.id if bug is not None and bug.side == framework else None
        sides[framework] = record(family, framework, planted, seed)
        sides[f"{framework} twins"] = [twin(family, framework, number, seed, planted) for number in range(twins)]
    torch, jax = sides["torch"], sides["jax"]
    return Pair(torch, jax, Noise.of_twins(torch, [*sides["torch twins"], jax, *sides["jax twins"]]))


def examine(bug: Bug, seed: int = 0) -> Finding:
    """Plant a bug, and ask for the first difference, its causes, and the culprit."""
    trainings = pair(bug.family, seed, bug)
    start = time.perf_counter()
    torch, jax, noise = trainings.torch, trainings.jax, trainings.noise
    comparison = compare(torch, jax, noise)
    if comparison.first is not None:
        comparison = comparison.with_causes(causes_of(torch, jax, noise, comparison))
    steps = [step_function(bug.family, side, bug.id if side == bug.side else None) for side in ("torch", "jax")]
    culprit = transplant(steps[0], steps[1], torch, jax, comparison, noise).culprit
    seconds = time.perf_counter() - start
    first, causes = comparison.first, tuple(cause.id for cause in comparison.causes)
    where = (None, "") if first is None else (first.update, first.key)
    return Finding(bug.id, *where, causes, culprit, comparison.sentence, round(seconds, 1))


def examine_correct(way: Way, seed: int) -> Correct:
    """Compare a correct pair, one side of which may go another way."""
    trainings = pair(way.family, seed, way if way.id in WAYS else None)
    comparison = compare(trainings.torch, trainings.jax, trainings.noise)
    return Correct(way.id, seed, comparison.outcome, comparison.sentence)
