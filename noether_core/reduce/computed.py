"""Name an interval's numbers, and hold them: what is logged and what is saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from noether_core.config.naming import Naming
from noether_core.config.tracking import Reduction, TrackAdditionalOutputsCallbackConfig
from noether_core.errors import NoetherError
from noether_core.reduce.partial import Partials, Vector

Scalar = float | int | bool
Value = np.ndarray[Any, Any] | Scalar | None  # None: the key has no such value


class Entry(NamedTuple):
    """Name one value: its key's place among the keys, its reduction, what it is logged under and what it is saved under."""

    at: int
    reduction: Reduction
    log_key: str
    tensor_name: str


class Schema(NamedTuple):
    """Say what a set of keys gives.

    Attributes:
        entries: each value, in the order to log it.
        names: their log keys.
        reductions: each reduction, with the places of the keys that have it, or None for all of them.
        pick: takes the values in the order of the entries out of those of one reduction after another's; None: they are so.
        is_plain: whether every value is a single number.
        naming: gives the names.
    """

    entries: tuple[Entry, ...]
    names: tuple[str, ...]
    reductions: tuple[tuple[Reduction, Vector | None], ...]
    pick: Any
    is_plain: bool
    naming: Naming


def make_schema(config: TrackAdditionalOutputsCallbackConfig, keys: Sequence[str], naming: Naming) -> Schema:
    """Return what a set of keys gives."""
    entries = _distinct(
        [
            Entry(at, reduction, naming.name(key, reduction), config.tensor_name(key, reduction))
            for at, key in enumerate(keys)
            for reduction in config.reductions(key)
        ],
        keys,
    )
    found: dict[Reduction, list[int]] = {}
    for number, entry in enumerate(entries):
        found.setdefault(entry.reduction, []).append(number)
    order = np.argsort([number for numbers in found.values() for number in numbers]).tolist()
    return Schema(
        entries,
        tuple(entry.log_key for entry in entries),
        tuple(
            (reduction, None if len(numbers) == len(keys) else np.array([entries[number].at for number in numbers]))
            for reduction, numbers in found.items()
        ),
        None if len(found) <= 1 else itemgetter(*order),
        not {"last", "stack"} & set(found),
        naming,
    )


def _distinct(entries: Sequence[Entry], keys: Sequence[str]) -> tuple[Entry, ...]:
    """Return the entries, of which one that is saved under its raw key gets its reduction after it if another has that name."""
    counts = Counter(entry.tensor_name for entry in entries)
    found = tuple(
        entry._replace(tensor_name=f"{keys[entry.at]}/{entry.reduction}")
        if counts[entry.tensor_name] > 1 and entry.tensor_name == keys[entry.at]
        else entry
        for entry in entries
    )
    return found if found == tuple(entries) else _distinct(found, keys)


@dataclass(frozen=True)
class Computed:
    """Hold what an interval gave.

    Attributes:
        keys: the keys, in the order to log them.
        wide: bool, of which keys a float is of float64.
        schema: what the values are.
        values: one for each entry of the schema.
        nonfinite: what the keys have of which some values were NaN or infinite; None where there is none.
        errors: what was raised; the value is then None, and all the others are there.
        lasts: what is logged as the newest number of each key, where several processes have one; None: what is saved is logged.
    """

    keys: tuple[str, ...]
    wide: Vector
    schema: Schema
    values: Sequence[Value]
    nonfinite: Partials | None = None
    errors: Sequence[NoetherError] = ()
    lasts: Mapping[str, Value] | None = None

    def scalars(self, logged: Mapping[str, Any] | None = None) -> dict[str, Scalar]:
        """Return the single numbers by log key; after those of a key also how many of its values were not finite.

        Args:
            logged: what others have logged with this. Another callback's equal count of the same key is not repeated.
        """
        if self.schema.is_plain and self.nonfinite is None and None not in self.values:
            return dict(zip(self.schema.names, self.values, strict=True))  # type: ignore[arg-type]
        found: dict[str, dict[str, Scalar]] = {key: {} for key in self.keys}
        for entry, value in zip(self.schema.entries, self.values, strict=True):
            if entry.reduction == "last" and self.lasts is not None:
                value = self.lasts.get(self.keys[entry.at])
            if isinstance(value, np.ndarray) and value.size == 1 and entry.reduction != "stack":
                value = value.item()
            if value is not None and not isinstance(value, np.ndarray):
                found[self.keys[entry.at]][entry.log_key] = value
        if self.nonfinite is not None:
            taken, others = set(self.schema.names), logged or {}
            for key, count in zip(self.nonfinite.keys, self.nonfinite.nonfinite.tolist(), strict=True):
                naming, times = self.schema.naming, 1
                name = naming.nonfinite(key)
                while name in taken or (name in others and repr(others[name]) != repr(count)):  # another key's
                    times += 1
                    name = naming.nonfinite(key, times)
                if name not in others:
                    found[key][name] = count
                taken.add(name)
        return {name: value for of_key in found.values() for name, value in of_key.items()}

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the values by tensor name: floats as float32, or float64 for a key of float64s or Python numbers."""
        return {
            entry.tensor_name: _array(value, bool(self.wide[entry.at]))
            for entry, value in zip(self.schema.entries, self.values, strict=True)
            if value is not None
        }


def _array(value: np.ndarray[Any, Any] | Scalar, is_wide: bool) -> np.ndarray[Any, Any]:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, float):
        return np.asarray(value, np.float64 if is_wide else np.float32)
    fits = next(
        (kind for kind in (np.int64, np.uint64) if np.iinfo(kind).min <= value <= np.iinfo(kind).max), np.float64
    )
    return np.asarray(value, fits)
