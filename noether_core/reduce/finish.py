"""Compute an interval's numbers: from the statistics of all keys to what is logged and saved, each number rounded once.

All keys go through NumPy together (`algebra/rounding.py`); one whose rounding that leaves open is worked out in exact fractions
(`finish_exact.py`). Names and their order come from a schema, made once for the keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np

from noether_core.algebra.expansion import Expansion, extended, two_sum
from noether_core.algebra.rounding import Near, quotient, ratio, rounded, square_root, variance
from noether_core.config.tracking import Reduction, TrackAdditionalOutputsCallbackConfig
from noether_core.errors import NoetherError, UpdateOutputError
from noether_core.reduce.finish_exact import compute_exactly
from noether_core.reduce.partial import Partials, Vector
from noether_core.reduce.stacking import stacked

Scalar = float | int | bool
Value = np.ndarray[Any, Any] | Scalar | None  # None: the key has no such value
MOST_SCHEMAS = 256  # kept; keys that come and go all the time would make ever more


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
    """

    entries: tuple[Entry, ...]
    names: tuple[str, ...]
    reductions: tuple[tuple[Reduction, Vector | None], ...]
    pick: Any
    is_plain: bool


def _make_schema(config: TrackAdditionalOutputsCallbackConfig, keys: Sequence[str]) -> Schema:
    entries = _distinct(
        [
            Entry(at, reduction, config.log_key(key, reduction), config.tensor_name(key, reduction))
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

    def scalars(self, interval: str) -> dict[str, Scalar]:
        """Return the single numbers by log key; after those of a key also how many of its values were not finite."""
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
            taken = set(self.schema.names)
            for key, count in zip(self.nonfinite.keys, self.nonfinite.nonfinite.tolist(), strict=True):
                name = f"{key}/nonfinite"
                while f"{name}/{interval}" in taken:  # another key's
                    name += "/nonfinite"
                found[key][f"{name}/{interval}"] = count
                taken.add(f"{name}/{interval}")
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


class Computation:
    """Compute what a config asks for.

    Args:
        config: says what is wanted of each key.
    """

    def __init__(self, config: TrackAdditionalOutputsCallbackConfig) -> None:
        self._config = config
        self._skip = config.nonfinite == "skip"
        self._schemas: dict[tuple[str, ...], Schema] = {}

    def compute(
        self, partials: Partials, update: int, lasts: Partials | None = None, errors: Sequence[NoetherError] = ()
    ) -> Computed:
        """Return what an interval gives.

        Args:
            partials: what each key has.
            update: the interval's last.
            lasts: the newest numbers of several processes, of which the mean is logged; None for one process.
            errors: what was raised before.
        """
        schema = self._schema(partials.keys)
        values: list[Value] = []
        errors = list(errors)
        with np.errstate(all="ignore"):
            for reduction, places in schema.reductions:
                values += self._each(reduction, partials if places is None else partials.take(places), update, errors)
        odd = partials.nonfinite
        return Computed(
            partials.keys,
            partials.wide,
            schema,
            values if schema.pick is None else schema.pick(values),
            partials.take(np.flatnonzero(odd)) if odd.any() else None,
            errors,
            None if lasts is None else self._means(lasts),
        )

    def _means(self, lasts: Partials) -> dict[str, Value]:
        """Return the mean of each key's numbers; an int, exactly, if they are ints and it is one."""
        if not lasts.keys:
            return {}
        with np.errstate(all="ignore"):
            means = self._reduced("mean", lasts, 0)
        found = dict(zip(lasts.keys, means, strict=True))
        for at in np.flatnonzero(lasts.whole).tolist():
            total, count = sum(int(part[at]) for part in lasts.statistics.total), int(lasts.elements[at])
            if total % count == 0:
                found[lasts.keys[at]] = total // count
        return found

    def of_lone_values(self, keys: tuple[str, ...], wide: Vector, values: Sequence[float]) -> Computed:
        """Return what an interval gives in which each key has one value, and that is what every reduction of it is."""
        schema = self._schema(keys)
        return Computed(keys, wide, schema, [values[entry.at] for entry in schema.entries])

    def _schema(self, keys: tuple[str, ...]) -> Schema:
        schema = self._schemas.get(keys)
        if schema is None:
            if len(self._schemas) >= MOST_SCHEMAS:
                self._schemas.clear()
            schema = self._schemas[keys] = _make_schema(self._config, keys)
        return schema

    def _each(
        self, reduction: Reduction, partials: Partials, update: int, errors: list[NoetherError]
    ) -> Iterable[Value]:
        """Return a reduction of all keys; what fails of one costs that key alone."""
        try:
            return self._reduced(reduction, partials, update)
        except Exception as error:
            if len(partials.keys) > 1:
                each = [self._each(reduction, partials.in_order((key,)), update, errors) for key in partials.keys]
                return [value for values in each for value in values]
            errors.append(_of_key(partials.keys[0], reduction, error))
            return [None]

    def _reduced(self, reduction: Reduction, partials: Partials, update: int) -> Iterable[Value]:
        if reduction == "last":
            return [self._last(partials, key, update) for key in partials.keys]
        if reduction == "stack":
            return [
                stacked(key, partials.stack[key].values) if key in partials.stack else None for key in partials.keys
            ]
        odd = partials.nonfinite
        count = partials.elements - odd if self._skip else partials.elements
        if reduction == "count":
            return count.tolist()  # type: ignore[no-any-return]
        found, is_open = _in_vectors(reduction, partials, count.astype(np.float64))
        if not self._skip:
            is_open = is_open | (odd > 0)
        values: list[Value] = found.tolist()
        if reduction in {"sum", "min", "max"}:  # of ints and bools they are exact ints
            is_open = is_open | partials.whole
        for at in np.flatnonzero(is_open).tolist():
            values[at] = compute_exactly(reduction, partials, at, skip=self._skip)
        return values

    def _last(self, partials: Partials, key: str, update: int) -> np.ndarray[Any, Any] | None:
        newest = partials.last.get(key)
        if newest is None or newest.update != update:
            return None
        value = newest.value
        is_left_out = self._skip and value.size == 1 and not np.isfinite(value.astype(np.float64)).all()
        return None if is_left_out else value


def _of_key(key: str, reduction: Reduction, error: Exception) -> NoetherError:
    if isinstance(error, NoetherError):
        return error
    wrapped = UpdateOutputError(
        f"update output {key!r} cannot be reduced with {reduction}: {type(error).__name__}: {error}; expected what NumPy can"
        " compute: choose another reduction, or convert it"
    )
    wrapped.__cause__ = error
    return wrapped


def _in_vectors(reduction: Reduction, partials: Partials, count: Vector) -> tuple[Vector, Vector]:
    """Return a reduction of the finite values of all keys, and a mask of those that are open."""
    statistics = partials.statistics
    wide: Vector | bool = bool(partials.wide[0]) if (partials.wide == partials.wide[0]).all() else partials.wide
    if reduction in {"min", "max"}:
        ends = statistics.minimum[0] if reduction == "min" else statistics.maximum[0]
        return np.where(wide, ends + 0.0, (ends + 0.0).astype(np.float32)), ~np.isfinite(ends)
    if reduction == "sum":
        return rounded(_sum(statistics.total), wide)
    if not partials.weighted.any():
        total: Expansion = statistics.total
        mass: Expansion = (count,)
    else:
        is_weighted = partials.weighted
        plain = extended(statistics.total, len(statistics.weighted), np.zeros_like(count))
        total = _where(is_weighted, statistics.weighted, plain)
        mass = _where(is_weighted, statistics.weights, (count, np.zeros_like(count)))
    if reduction == "mean":
        is_one = len(mass) == 1 and (count == 1).all()
        return rounded(
            _sum(total) if is_one else quotient(total, count) if len(mass) == 1 else ratio(total, mass), wide
        )
    found = variance(total, statistics.squares, mass)
    return rounded(found if reduction == "var" else square_root(found), wide)


def _sum(total: Expansion) -> Near:
    near, rest = two_sum(*total)
    return Near(near, rest, None)


def _where(condition: Vector, values: Expansion, others: Expansion) -> Expansion:
    return tuple(np.where(condition, value, other) for value, other in zip(values, others, strict=True))
