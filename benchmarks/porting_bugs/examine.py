"""Ask the tool about trainings with a planted bug, and about correct pairs, and see whether it is right."""

from __future__ import annotations

import time
from dataclasses import dataclass

from benchmarks.porting_bugs.families import WAYS
from benchmarks.porting_bugs.record import TWINS, record, twin
from benchmarks.porting_bugs.steps import step_function
from benchmarks.porting_bugs.truth import Bug, Way
from noether_core.parity.between_runs.transplant import Transplant, transplant
from noether_core.parity.divergence import Comparison, MemoryTraining, Noise, compare
from noether_core.parity.divergence.causes import causes_of

NAMED = 3
"""How many causes are looked at."""


@dataclass(frozen=True)
class Pair:
    """Hold a training of each framework, and the noise of their twins."""

    torch: MemoryTraining
    jax: MemoryTraining
    noise: Noise


@dataclass(frozen=True)
class Finding:
    """Hold what the tool says of a bug.

    Attributes:
        comparison: with causes.
        seconds: that comparing, naming causes and transplanting took; recording is not counted.
    """

    bug: Bug
    comparison: Comparison
    transplanted: Transplant
    seconds: float

    @property
    def update_right(self) -> bool:
        """Whether the first update is right."""
        first = self.comparison.first
        return first is not None and first.update == self.bug.first_update

    @property
    def stage_right(self) -> bool:
        """Whether the stage is right too."""
        first = self.comparison.first
        return self.update_right and first is not None and first.stage == self.bug.stage

    @property
    def key_right(self) -> bool:
        """Whether the key is right too."""
        first = self.comparison.first
        return self.stage_right and first is not None and self.bug.has_key(first.key)

    @property
    def cause_place(self) -> int | None:
        """Which of the causes is a right one, counted from 1; None if none of the first is."""
        named = [cause.id for cause in self.comparison.causes[:NAMED]]
        return next((place for place, cause in enumerate(named, 1) if cause in self.bug.causes), None)

    @property
    def culprit_right(self) -> bool:
        """Whether transplanting names a right culprit."""
        return self.transplanted.culprit in self.bug.culprits


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
    found = transplant(steps[0], steps[1], torch, jax, comparison, noise)
    return Finding(bug, comparison, found, time.perf_counter() - start)


def examine_correct(way: Way, seed: int) -> Comparison:
    """Compare a correct pair, one side of which may go another way."""
    trainings = pair(way.family, seed, way if way.id in WAYS else None)
    return compare(trainings.torch, trainings.jax, trainings.noise)
