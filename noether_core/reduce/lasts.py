"""Take each key's newest value as a number among those of other processes."""

from __future__ import annotations

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
    place = {key: at for at, key in enumerate(partials.keys)}
    position = np.zeros((1, 1), np.int64)
    lifted = [lift(NUMPY, value.reshape(1, 1), position, _PLAIN) for value in found.values()]
    statistics = each(lambda *values: np.concatenate([value.reshape(1) for value in values]), *lifted)
    none = np.zeros(len(found), bool)
    return Partials(
        tuple(found),
        statistics,
        np.ones(len(found), np.int64),
        partials.wide[[place[key] for key in found]],
        np.array([value.dtype.name in WHOLE_DTYPES for value in found.values()]),
        none,
    )
