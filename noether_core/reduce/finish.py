"""Compute an interval's numbers: from the statistics of all keys to what is logged and saved, each number rounded once.

All keys go through NumPy together (`algebra/rounding.py`); one whose rounding that leaves open is worked out in exact fractions
(`finish_exact.py`). Names and their order come from a schema, made once for the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from noether_core.algebra.expansion import Expansion, extended, two_sum
from noether_core.algebra.rounding import Near, quotient, ratio, rounded, square_root, variance
from noether_core.config.naming import Naming
from noether_core.config.tracking import Reduction, TrackAdditionalOutputsCallbackConfig
from noether_core.errors import NoetherError, UpdateOutputError
from noether_core.reduce.computed import Computed, Schema, Value, make_schema
from noether_core.reduce.finish_exact import compute_exactly
from noether_core.reduce.partial import Partials, Vector
from noether_core.reduce.stacking import stacked
from noether_core.silence import SILENT

MOST_SCHEMAS = 256  # kept; keys that come and go all the time would make ever more


class Computation:
    """Compute what a config asks for.

    Args:
        config: says what is wanted of each key.
        naming: gives the names of what is logged; None: the config's.
    """

    def __init__(self, config: TrackAdditionalOutputsCallbackConfig, naming: Naming | None = None) -> None:
        self._config, self._naming = config, naming or config.naming
        self._skip = config.nonfinite == "skip"
        self._schemas: dict[tuple[str, ...], Schema] = {}

    @SILENT
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
            schema = self._schemas[keys] = make_schema(self._config, keys, self._naming)
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
