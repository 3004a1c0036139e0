"""See one training under the parameters' names of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from noether_core.names import Matching, align
from noether_core.names.pieces import Entry, WeightsError
from noether_core.parity.divergence.training import MemoryTraining, Training, stage_of
from noether_core.parity.divergence.view import TrainingView
from noether_core.probes import Statistics

OF_PARAMETERS = ("param", "grad", "clip", "update")
Mapped = str | Path | Mapping[str, Any] | None


def matching_of(a: Training, b: Training, mapping: Mapped = None) -> Matching | None:
    """Match the parameters' names of two trainings, as part of the update that both have first.

    Args:
        a: a training.
        b: the other one.
        mapping: a mapping file, or what it would hold: for each name of `a` what `b` calls it; None: none.

    Returns:
        The matching, `a`'s names in the place of PyTorch's; None where they have the same names, or one has none.

    Raises:
        ConfigFileError: for a mapping that cannot be read, or names what neither training has.
    """
    both = sorted(set(a.updates()) & set(b.updates()))
    if not both:
        return None
    for stage in OF_PARAMETERS:
        names_a, names_b = _arrays(a, both[0], stage), _arrays(b, both[0], stage)
        if names_a and names_b:
            is_alike = names_a.keys() == names_b.keys() and mapping is None
            return None if is_alike else align(names_a, names_b, mapping)
    return None


def _arrays(training: Training, update: int, stage: str) -> dict[str, Any]:
    """Return a stage's arrays by name; what was not kept has the shape that its count says."""
    found: dict[str, Any] = {}
    for key in training.keys(update):
        if stage_of(key) == stage:
            array = training.array(update, key)
            statistics = training.statistics(update, key) if array is None else None
            found[key.partition("/")[2]] = array if array is not None else (statistics.count if statistics else 0,)
    return found


def _is_whole(entry: Entry) -> bool:
    """Tell whether a name is one array of the training's, and all of it."""
    return len(entry.pieces) == 1 and entry.pieces[0].rows is None


class Aligned(TrainingView):
    """Show a training under another one's names and in its layout; what has no partner keeps its own name.

    Args:
        training: the training.
        matching: `matching_of` the other one and this.
    """

    def __init__(self, training: Training, matching: Matching) -> None:
        super().__init__(training)
        self.matching = matching
        self._entries = {path: entry for entry in matching.entries for path in entry.paths}
        self._by_name = {entry.name: entry for entry in matching.entries}

    def keys(self, update: int) -> Sequence[str]:
        """Return an update's keys under the other training's names."""
        return tuple(dict.fromkeys(self._renamed(key) for key in self.training.keys(update)))

    def array(self, update: int, key: str) -> np.ndarray[Any, Any] | None:
        """Return an array in the other training's layout, or None."""
        kind, entry = self._entry_of(key)
        if entry is None:
            return self.training.array(update, self._own_name(key))
        there = set(self.training.keys(update))
        keys = {path: f"{kind}/{path}" for path in entry.paths}
        found = {path: self.training.array(update, own) for path, own in keys.items() if own in there}
        arrays = {path: array for path, array in found.items() if array is not None}
        if len(arrays) < len(keys):
            return None
        return self._laid_out(entry, arrays, kind != "param")

    def _laid_out(self, entry: Entry, arrays: Mapping[str, Any], gradients: bool) -> np.ndarray[Any, Any] | None:
        """Return an array in the other's layout; one without its parameter's shape, such as a factored moment, as it is."""
        try:
            array: np.ndarray[Any, Any] | None = self.matching.to_canonical(arrays, gradients).get(entry.name)
        except WeightsError:
            return arrays[entry.paths[0]] if _is_whole(entry) else None
        return array

    def statistics(self, update: int, key: str) -> Statistics | None:
        """Return an array's statistics, or None."""
        own = self._key_of_statistics(key)
        if own:
            return self.training.statistics(update, own)
        array = self.array(update, key)
        return None if array is None else MemoryTraining("", "", {update: {key: array}}).statistics(update, key)

    def _key_of_statistics(self, key: str) -> str:
        """Return the training's own key of an array that it has whole; empty if that is made of parts."""
        kind, entry = self._entry_of(key)
        if entry is None:
            return self._own_name(key)
        return f"{kind}/{entry.paths[0]}" if _is_whole(entry) else ""

    def _renamed(self, key: str) -> str:
        stage = stage_of(key)
        if stage == "act":
            return f"act/{self._module(key.partition('/')[2])}"
        kind, name = _split(key)
        return f"{kind}/{self._entries[name].name}" if stage not in ("data", "loss") and name in self._entries else key

    def _entry_of(self, key: str) -> tuple[str, Entry | None]:
        kind, name = _split(key)
        return kind, None if stage_of(key) in ("data", "loss", "act") else self._by_name.get(name)

    def _module(self, name: str) -> str:
        """Return an activation's name with its module's replaced, as far as that is known."""
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            known = self.matching.modules.get(".".join(parts[:end]))
            if known is not None:
                return ".".join([known, *parts[end:]])
        return name

    def _own_name(self, key: str) -> str:
        if stage_of(key) != "act":
            return key
        name = key.partition("/")[2]
        for own, theirs in self.matching.modules.items():
            if name == theirs or name.startswith(f"{theirs}."):
                return f"act/{own}{name.removeprefix(theirs)}"
        return key


def _split(key: str) -> tuple[str, str]:
    """Return what stands before a parameter's name, such as `opt/mu`, and the name.

    >>> _split("grad/fc.weight"), _split("opt/mu/fc.weight"), _split("opt/norm.running_mean")
    (('grad', 'fc.weight'), ('opt/mu', 'fc.weight'), ('opt', 'norm.running_mean'))
    """
    kind, _, name = key.rpartition("/") if stage_of(key) == "opt" else key.partition("/")
    return kind, name
