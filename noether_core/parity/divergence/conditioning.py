"""Tell differences that rounding makes where a value is ill-conditioned from those that it does not make.

Four things turn a rounding error into a difference of any size, in correct pairs: a gradient that is zero but for rounding;
an update that divides by the root of a tiny second moment, or is the sign of a sum near zero (see `signs`); and an activation
where its derivative jumps (see `kinks`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from noether_core.parity.divergence.distance import sampled
from noether_core.parity.divergence.noise import FLOORS, TIMES, Noise
from noether_core.parity.divergence.signs import turned
from noether_core.parity.divergence.table import Table, pair_of
from noether_core.parity.divergence.training import Training

Array = np.ndarray[Any, Any]

NULL = 1e-5  # the root mean square of a gradient that is rounding alone, over that of the layer's others, at most
OTHERS = 16  # gradients that stand for all, beside one that has no others in its layer
BLIND = 0.03  # noise at which norms tell nothing
ELEMENTS = 1 << 22  # of an array of which single elements are looked at
HISTORY = 12  # updates whose gradients say how well an element of an update is conditioned


def parameter_of(key: str) -> str:
    """Return the parameter that a key is of.

    >>> parameter_of("opt/mu/encoder.weight"), parameter_of("grad/encoder.weight")
    ('encoder.weight', 'encoder.weight')
    """
    stage, _, name = key.partition("/")
    return name.rpartition("/")[2] if stage == "opt" else name


def is_null(table: Table, noise: Noise, update: int, name: str) -> bool:
    """Say whether a parameter's gradient is zero but for rounding, in both trainings, so far.

    Twins say it where they differ from one another by their own size; without, its size beside the layer's other gradients.
    """
    key = f"grad/{name}"
    column = table.columns.get(key)
    if column is None:
        return False
    row = int(np.searchsorted(column.updates, update, side="right")) - 1
    if row < 0:
        return False
    if noise.of_twins_at(key, np.array([update]))[0] >= BLIND:
        return bool(column.norm_at(row) <= 100 * noise.norms.get(key, 0.0))
    sizes = [_root_mean_square(table, other, update) for other in _siblings(table, key)]
    own = _root_mean_square(table, key, update)
    return bool(sizes) and own is not None and own <= NULL * max(size for size in sizes if size is not None)


def _siblings(table: Table, key: str) -> list[str]:
    """Return the other gradients of a key's layer, or, of a layer that has one alone, all others."""
    others = [each for each in table.of_stage("grad") if each != key]
    layer = key.rpartition(".")[0] + "."
    return [each for each in others if each.startswith(layer)] or others[:: max(1, len(others) // OTHERS)]


def _root_mean_square(table: Table, key: str, update: int) -> float | None:
    column = table.columns[key]
    row = column.at(update)
    if row >= len(column.updates) or column.updates[row] != update:
        return 0.0
    return column.norm_at(row) / float(np.sqrt(column.size))


def unexplained_update(
    a: Training, b: Training, table: Table, update: int, key: str, factor: float = 0.0
) -> float | None:
    """Return the distance of what the gradients' noise does not explain of an update's difference; None if that cannot be said.

    An optimizer that divides by the root of a second moment moves an element by up to its own size where the gradient's error
    is as large as all its gradients so far, such as |g| = 3e-9 beside others of 1e-2. So each element's difference is taken as
    explained up to ten times the relative error of its gradients: the largest of |Δg| and the noise, over the root mean square
    of g.

    Args:
        a: a training.
        b: the other.
        table: what was measured of them.
        update: whose updates are looked at.
        key: `update/name`.
        factor: what binary32 leaves in the moments' correction: b's updates over a's, minus 1.
    """
    name = parameter_of(key)
    pair = _elements(a, b, table, update, key)
    errors = relative_errors(a, b, table, update, name)
    if errors is None or pair is None:
        return None
    first, second = pair
    if len(first) != len(errors):
        return None
    size = np.maximum(np.abs(first), np.abs(second))
    explained = TIMES * np.maximum(size, np.sqrt(np.mean(size**2))) * errors
    apart = np.where(_turned(a, b, table, update, key), 0.0, np.abs(first * (1 + factor) - second))
    total, rest = float(np.linalg.norm(first - second)), float(np.linalg.norm(np.maximum(apart - explained, 0.0)))
    column = table.columns[key]
    whole = float(column.distance[column.at(update)])
    return whole * rest / total if total else None


def _turned(a: Training, b: Training, table: Table, update: int, key: str) -> Array:
    """Return which elements' updates are the sign of a sum near zero, flat, or False for all."""
    name = parameter_of(key)
    updates = _elements(a, b, table, update, key)
    gradients = _elements(a, b, table, update, f"{_gradient_stage(table, name)}/{name}")
    if updates is None or gradients is None or not np.any(updates[0] * updates[1] < 0):
        return np.zeros(1, bool)
    buffers = [each for each in table.of_stage("opt") if parameter_of(each) == name]
    none = np.zeros_like(gradients[0])
    momenta = [(none, none), *filter(None, (_elements(a, b, table, update - 1, each) for each in buffers))]
    error = TIMES * FLOORS["grad"]
    alike = (each for each in momenta if len(each[0]) == len(gradients[0]) == len(updates[0]))
    return np.asarray(np.any([turned(updates, gradients, each, error) for each in alike], axis=0))


def _elements(a: Training, b: Training, table: Table, update: int, key: str) -> tuple[Array, Array] | None:
    """Return the same elements of a key's arrays, flat, in binary64; None unless both have one, of one shape."""
    pair = pair_of(a, b, table, update, key)
    if pair is None:
        return None
    first, second = sampled(*pair, most=ELEMENTS)
    return first, second


def _gradient_stage(table: Table, name: str) -> str | None:
    """Return the stage of the gradients that a parameter's update is made of; None if there are none."""
    return next((each for each in ("clip", "grad") if f"{each}/{name}" in table.columns), None)


def relative_errors(a: Training, b: Training, table: Table, update: int, name: str) -> Array | None:
    """Return the relative error of each element's gradients up to an update, binary64, flat; None if there are none.

    The largest so far counts: a buffer of momentum keeps what an ill-conditioned element once added to it.
    """
    stage = _gradient_stage(table, name)
    if stage is None:
        return None
    key = f"{stage}/{name}"
    column = table.columns[key]
    updates = [int(each) for each, whole in zip(column.updates, column.whole, strict=True) if whole and each <= update]
    relative: Array | None = None
    error, squares = np.zeros(1), np.zeros(1)
    for number, each in enumerate(updates[-HISTORY:], 1):
        pair = _elements(a, b, table, each, key)
        if pair is None:
            return None
        first, second = pair
        rounding = FLOORS[stage] * np.sqrt(np.mean(first**2)) * ((first != 0) | (second != 0))
        error = np.maximum(error, np.maximum(np.abs(first - second), rounding))
        squares = squares + np.minimum(np.abs(first), np.abs(second)) ** 2
        now = np.where(error > 0, error / np.sqrt(squares / number), 0.0)
        relative = now if relative is None else np.maximum(relative, now)
    return relative
