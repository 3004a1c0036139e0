"""Tell where a sum that is zero but for rounding decides the sign of an element's update, as in Lion: then it may turn."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MOST = 1 - 1e-6  # that β is: a gradient always counts

Pair = tuple[Array, Array]  # of the one training and of the other, flat, of one length


def turned(updates: Pair, gradients: Pair, momenta: Pair, error: float) -> Array:
    """Return which elements' updates have another sign in each training where rounding alone decides it, bool.

    An optimizer that takes the sign of β·momentum + (1 − β)·gradient has one β for all elements. So there must be one from
    which the signs of all elements follow, in both trainings; then those that differ are of sums within noise of zero. If there
    is none, the signs have another reason, and no element is returned.

    Args:
        updates: what is added to the parameters.
        gradients: the update's.
        momenta: as the update before has left them.
        error: how far the arrays may be apart, relative to their root mean square.

    >>> one, other = np.float64([-1, -1, 1]), np.float64([-1, 1, 1])
    >>> gradient, momentum = np.float64([1, 3, -2]), np.float64([2, -1, -3])
    >>> turned((one, other), (gradient, gradient), (momentum, momentum), 1e-6)
    array([False,  True, False])
    >>> gradient, momentum = np.float64([1, 3, -2]), np.float64([2, 1, -3])
    >>> turned((one, other), (gradient, gradient), (momentum, momentum), 1e-6)
    array([False, False, False])
    """
    found: Array = updates[0] * updates[1] < 0
    near = _uncertain(gradients, error)
    nearer = _uncertain(momenta, error) - near
    least, most = 0.0, MOST
    for update, gradient, momentum in zip(updates, gradients, momenta, strict=True):
        sign = -np.sign(update)
        start, slope = sign * gradient + near, sign * (momentum - gradient) + nearer  # start + β·slope is 0 or more
        rising, falling = (sign != 0) & (slope > 0), (sign != 0) & (slope < 0)
        if np.any(start[(sign != 0) & (slope == 0)] < 0):
            return np.zeros_like(found)
        least = max(least, float(np.max(-start[rising] / slope[rising], initial=0.0)))
        most = min(most, float(np.min(-start[falling] / slope[falling], initial=1.0)))
    return found if least <= most else np.zeros_like(found)


def _uncertain(pair: Pair, error: float) -> Array:
    """Return how far each element is apart, or may be by rounding, whichever is more."""
    return np.asarray(np.maximum(np.abs(pair[0] - pair[1]), error * np.sqrt(np.mean(pair[0] ** 2))))
