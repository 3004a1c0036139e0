"""Hold what the tool says of a bug."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.porting_bugs.families import BUGS
from benchmarks.porting_bugs.truth import Bug

NAMED = 3
"""How many causes are looked at."""


@dataclass(frozen=True)
class Finding:
    """Hold what the tool says of a bug.

    Attributes:
        name: the bug's.
        update, key: where the trainings first differ; None and an empty string if nowhere.
        causes: their ids, the likeliest first.
        culprit: what transplanting names.
        seconds: that comparing, naming causes and transplanting took; recording is not counted.
    """

    name: str
    update: int | None
    key: str
    causes: tuple[str, ...]
    culprit: str | None
    sentence: str
    seconds: float

    @property
    def bug(self) -> Bug:
        """The bug."""
        return BUGS[self.name]

    @property
    def update_right(self) -> bool:
        """Whether the first update is right."""
        return self.update == self.bug.first_update

    @property
    def stage_right(self) -> bool:
        """Whether the stage is right too."""
        return self.update_right and self.key.partition("/")[0] == self.bug.stage

    @property
    def key_right(self) -> bool:
        """Whether the key is right too."""
        return self.stage_right and self.bug.has_key(self.key)

    @property
    def cause_place(self) -> int | None:
        """Which of the causes is a right one, counted from 1; None if none of the first is."""
        named = enumerate(self.causes[:NAMED], 1)
        return next((place for place, cause in named if cause in self.bug.causes), None)

    @property
    def culprit_right(self) -> bool:
        """Whether transplanting names a right culprit."""
        return self.culprit in self.bug.culprits
