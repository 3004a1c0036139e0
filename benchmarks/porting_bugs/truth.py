"""Say what a planted bug is, and what a tool that compares trainings should find."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Literal

Framework = Literal["torch", "jax"]
Culprit = Literal["batch", "params", "optimizer state", "forward", "clip", "optimizer"]
"""What closes the gap if it is taken from the other training.

`forward` is all from batch and parameters to gradients and buffers, `optimizer` all from (clipped) gradients on.
"""
BATCHES: tuple[Culprit, ...] = ("batch",)
PARAMS: tuple[Culprit, ...] = ("params",)
STATE: tuple[Culprit, ...] = ("optimizer state",)
FORWARD: tuple[Culprit, ...] = ("forward",)
CLIP: tuple[Culprit, ...] = ("clip",)
OPT: tuple[Culprit, ...] = ("optimizer",)
Change = Callable[[Any], Any]
"""From a correct recipe to one with a bug."""


@dataclass(frozen=True)
class Bug:
    """Name a bug, how it is planted, and where it must be found.

    Attributes:
        id: begins with its family's name.
        change: makes the recipe of the side that has it wrong.
        stage: the first stage that differs, at `first_update`, the first update that does; updates count from 1.
        keys: patterns, one of which the first differing key matches.
        causes: ids out of `noether_core.parity.divergence.causes.names`, each of them a right answer.
        culprits: what transplanting may find.
        side: the framework whose code has the bug; the other is correct.
    """

    id: str
    change: Change
    stage: str
    keys: tuple[str, ...]
    first_update: int
    causes: tuple[str, ...]
    culprits: tuple[Culprit, ...]
    side: Framework = "jax"

    @property
    def family(self) -> str:
        """The family that has it: what stands before the first dash of its id."""
        return self.id.partition("-")[0]

    def truth(self) -> dict[str, Any]:
        """Return what should be found, as plain data."""
        keys, causes = list(self.keys), list(self.causes)
        where = {
            "family": self.family,
            "side": self.side,
            "stage": self.stage,
            "keys": keys,
            "first_update": self.first_update,
        }
        return {**where, "causes": causes, "culprits": list(self.culprits)}

    def has_key(self, key: str) -> bool:
        """Tell whether a key is where this bug first shows."""
        return any(fnmatchcase(key, pattern) for pattern in self.keys)


@dataclass(frozen=True)
class Way:
    """Name another way to compute the same, which rounds otherwise and is no bug, as a library of the framework has it."""

    id: str
    change: Change
    side: Framework = "jax"

    @property
    def family(self) -> str:
        """The family that has it."""
        return self.id.partition("-")[0]


_USUAL: dict[str, tuple[Culprit, ...]] = {
    "data": BATCHES,
    "param": PARAMS,
    "act": FORWARD,
    "loss": FORWARD,
    "grad": FORWARD,
    "clip": CLIP,
    "update": OPT,
    "opt": OPT,
}


def planted(
    name: str,
    change: Change,
    keys: str,
    causes: str,
    first: int = 1,
    culprits: tuple[Culprit, ...] = (),
    side: Framework = "jax",
) -> Bug:
    """Return a bug; patterns of its stage's keys and causes have spaces between, the culprit is usually its stage's."""
    stage = keys.partition("/")[0]
    return Bug(name, change, stage, tuple(keys.split()), first, tuple(causes.split()), culprits or _USUAL[stage], side)


def recipe(**changes: Any) -> Change:
    """Return the change of a recipe's own fields."""
    return lambda correct: replace(correct, **changes)


def model(**changes: Any) -> Change:
    """Return the change of the fields of a recipe's model."""
    return lambda correct: replace(correct, model=replace(correct.model, **changes))


def optimizer(**changes: Any) -> Change:
    """Return the change of the fields of a recipe's optimizer."""
    return lambda correct: replace(correct, optimizer=replace(correct.optimizer, **changes))


def loaded(**changes: Callable[[Any], Any]) -> Change:
    """Return the change of weights while they are loaded; a name's dots are written as `__`."""

    def load(weights: Mapping[str, Any]) -> dict[str, Any]:
        wrong = {name.replace("__", "."): change for name, change in changes.items()}
        return {name: wrong[name](value).copy() if name in wrong else value for name, value in weights.items()}

    return recipe(load=load)
