"""Hold what a comparison found, as plain data that prints, dumps and draws."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from noether_core.probes.stages import STAGES
from noether_core.text import for_json

Outcome = Literal["same", "differs", "cannot say"]

EXIT_CODES: dict[Outcome, int] = {"same": 0, "differs": 1, "cannot say": 2}


@dataclass(frozen=True)
class Divergence:
    """Say how far two trainings are apart at one key of one update.

    Attributes:
        update: counted from 1.
        key: `stage/name`.
        distance: the relative norm of the difference, ‖a − b‖ / max(‖a‖, ‖b‖); 2.0 at most; infinite where one has NaN.
        noise: what a run drifts there from its own twin, in the same measure.
        ulps: the median over elements, in units in the last place; shown, never decided by. None if there are no elements.
        shape: what the difference looks like, in words ("a constant factor of 0.5"); empty if nothing simple.
    """

    update: int
    stage: str
    key: str
    distance: float
    noise: float
    ulps: float | None = None
    shape: str = ""

    @property
    def times_noise(self) -> float:
        """How many times the noise the distance is."""
        return self.distance / self.noise if self.noise else float("inf")


@dataclass(frozen=True)
class Cause:
    """Name a likely cause.

    Attributes:
        id: one of `causes.names.CAUSES`.
        sentence: what it says to a person, with the key and the numbers.
        evidence: what was measured, one line each.
        score: between 0 and 1; orders the causes, and is no probability.
    """

    id: str
    sentence: str
    evidence: tuple[str, ...] = ()
    score: float = 0.5


@dataclass(frozen=True)
class Comparison:
    """Say where two trainings first part.

    Attributes:
        outcome: same, differs, or cannot say.
        sentence: the answer, in one sentence or two.
        labels: what the two are called.
        first: the first difference by update, stage and order of computation; None if there is none.
        differences: all of them, in that order, at most 1,000.
        causes: likely causes, the best first.
        same_through: the last update before the first difference that both have; 0 if there is none.
        compared: how many pairs of arrays or statistics were compared.
        stages: those of which there were pairs.
        has_twins: whether noise was measured; without, floors stand in and the answer is less sure.
        warnings: what a person should know: keys of one run alone, another length, other settings.
        settings: of both, side by side.
    """

    outcome: Outcome
    sentence: str
    labels: tuple[str, str]
    first: Divergence | None = None
    differences: tuple[Divergence, ...] = ()
    causes: tuple[Cause, ...] = ()
    same_through: int = 0
    compared: int = 0
    stages: tuple[str, ...] = ()
    has_twins: bool = False
    warnings: tuple[str, ...] = ()
    settings: tuple[dict[str, Any], dict[str, Any]] = field(default_factory=lambda: ({}, {}))

    def is_judged(self, stage: str) -> bool:
        """Tell whether a stage without a difference is the same: what follows from the first difference is judged no more."""
        return self.first is None or STAGES.index(stage) < STAGES.index(self.first.stage)

    @property
    def exit_code(self) -> int:
        """0 for the same, 1 for a difference, 2 where it cannot be said."""
        return EXIT_CODES[self.outcome]

    def with_causes(self, causes: tuple[Cause, ...]) -> Comparison:
        """Return the same with likely causes."""
        return replace(self, causes=causes)

    def as_json(self) -> dict[str, Any]:
        """Return it as plain dicts, lists, strings and numbers; infinities and NaN are strings, as in the log."""
        return {"schema": 1, **for_json(asdict(self)), "exit_code": self.exit_code}
