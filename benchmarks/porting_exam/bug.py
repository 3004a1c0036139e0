"""Read the table of bugs, and judge what the tool says of one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from benchmarks.porting_exam import denoiser, dlrm, sepconv, tagger, vae, vit
from benchmarks.porting_exam.pair import Pair

Framework = Literal["torch", "jax"]
PAIRS: Mapping[str, Pair] = {each.PAIR.name: each.PAIR for each in (tagger, vit, denoiser, vae, dlrm, sepconv)}
NAMED = 3
"""How many causes are looked at."""


@dataclass(frozen=True, eq=False)
class Bug:
    """Hold a bug and its truth, as `bugs.yaml` has them.

    Attributes:
        id: begins with its pair's name.
        side: the framework whose code has it.
        changes: of that side's options.
        first: the first update that differs.
        keys: patterns with spaces between; the first differing key matches one of them.
        causes: ids with spaces between, each of them right.
        culprits: what transplanting may name, with commas between.
        words: what it is.
        round: which bugs were asked together first: 2 and later are bugs planted after rules had been mended on those before.
    """

    id: str
    side: Framework
    changes: Mapping[str, Any]
    first: int
    keys: str
    causes: str
    culprits: str
    words: str
    round: int = 1

    @property
    def pair(self) -> Pair:
        """The pair that has it."""
        return PAIRS[self.id.partition("-")[0]]


@cache
def bugs() -> tuple[Bug, ...]:
    """Return the table."""
    text = Path(__file__).with_name("bugs.yaml").read_text(encoding="utf-8")
    return tuple(Bug(**each) for each in yaml.safe_load(text))


def bug_named(name: str) -> Bug:
    """Return a bug of the table."""
    return next(bug for bug in bugs() if bug.id == name)


@dataclass(frozen=True)
class Finding:
    """Hold what the tool says of a bug, and judge it.

    Attributes:
        name: the bug's.
        update, key: where the trainings first differ; None and an empty string if nowhere.
        causes: their ids, the likeliest first.
        culprit: what transplanting names.
        sentence: the answer.
        seconds: that comparing and naming causes took.
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
        return bug_named(self.name)

    @property
    def update_right(self) -> bool:
        """Whether the first update is right."""
        return self.update == self.bug.first

    @property
    def stage_right(self) -> bool:
        """Whether the stage is right too."""
        stages = {key.partition("/")[0] for key in self.bug.keys.split()}
        return self.update_right and self.key.partition("/")[0] in stages

    @property
    def key_right(self) -> bool:
        """Whether the key is right too."""
        return self.stage_right and any(fnmatchcase(self.key, key) for key in self.bug.keys.split())

    @property
    def cause(self) -> str:
        """The first right cause of those that count; empty if there is none."""
        return next((cause for cause in self.causes[:NAMED] if cause in self.bug.causes.split()), "")

    @property
    def culprit_right(self) -> bool:
        """Whether transplanting names a right part."""
        return self.culprit in self.bug.culprits.split(",")
