"""List the families and their bugs."""

from __future__ import annotations

from benchmarks.porting_bugs.cnn_bugs import CNN
from benchmarks.porting_bugs.family import Family
from benchmarks.porting_bugs.lstm_bugs import LSTM
from benchmarks.porting_bugs.mlp_bugs import MLP
from benchmarks.porting_bugs.transformer_bugs import TRANSFORMER
from benchmarks.porting_bugs.truth import Bug, Way

FAMILIES: dict[str, Family] = {family.name: family for family in (CNN, LSTM, MLP, TRANSFORMER)}
BUGS: dict[str, Bug] = {bug.id: bug for family in FAMILIES.values() for bug in family.bugs}
WAYS: dict[str, Way] = {way.id: way for family in FAMILIES.values() for way in family.ways}


def bug_named(name: str) -> Bug | Way:
    """Return a bug, or another way of computing the same, by its id."""
    if name not in BUGS and name not in WAYS:
        raise KeyError(f"{name!r} is no planted bug; there are {', '.join([*BUGS, *WAYS])}")
    return BUGS.get(name) or WAYS[name]
