"""Take each key's newest value as a number among those of other processes."""

from __future__ import annotations

from typing import Any

import numpy as np

from noether_core.algebra.lift import lift
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.sums import Fields, each
from noether_core.reduce.partial import WHOLE_DTYPES, Partials, no_partials

_PLAIN = Fields()


def lasts_of(partials: Partials, update: int) -> Partials:
    """Return the newest values of an update that are single numbers, as statistics of one value each, under their keys."""
    found = {
        key: newest.value for key, newest in partials.last.items() if newest.update == update and newest.value.size == 1
    }
    if not found:
        return no_partials(_PLAIN)
    by_dtype: dict[np.dtype[Any], list[str]] = {}
    for key, value in found.items():
        by_dtype.setdefault(value.dtype, []).append(key)
    position = np.zeros((1, 1), np.int64)
    lifted = [
        lift(NUMPY, np.array([found[key].item() for key in keys], dtype)[None], position, _PLAIN)
        for dtype, keys in by_dtype.items()
    ]
    keys = tuple(key for of_dtype in by_dtype.values() for key in of_dtype)
    place = {key: at for at, key in enumerate(partials.keys)}
    return Partials(
        keys,
        each(lambda *values: np.concatenate([value[0] for value in values]), *lifted),
        np.ones(len(keys), np.int64),
        partials.wide[[place[key] for key in keys]],
        np.repeat([dtype.name in WHOLE_DTYPES for dtype in by_dtype], [*map(len, by_dtype.values())]),
        np.zeros(len(keys), bool),
    )
