"""Name causes by what the difference of two outputs looks like, whatever the layer is."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from noether_core.parity.divergence.causes.case import Array, Case
from noether_core.parity.divergence.causes.measures import affine, distance, factor, same_values, scattered, short_share
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

_SAME = 1e-5
COARSEST = 5e-3  # relative: what bfloat16 makes of one layer at most
SLIGHT = 0.02  # relative: what another mask or scale does is more, what another precision does is less
ADVICE = (
    'where matrices are multiplied in TF32: in JAX jax.config.update("jax_default_matmul_precision", "highest"); in PyTorch'
    " torch.backends.cuda.matmul.allow_tf32 = False and torch.backends.cudnn.allow_tf32 = False"
)


def shape_causes(case: Case, key: str, outputs: tuple[Array, Array]) -> list[Cause]:
    """Name causes by the outputs alone: order, precision, masks, borders, channels, factors."""
    raw_a, raw_b = outputs
    a, b = raw_a.astype(np.float64), raw_b.astype(np.float64)
    found = []
    if a.size == b.size:
        found += list(_orders(case, key, a, b))
    if a.shape != b.shape:
        found.append(_shapes(key, a, b))
        return found
    found += list(_precision(key, raw_a, raw_b, a, b))
    if a.ndim == 3:  # where a sequence begins, attention's dropout takes whole values
        found += list(_dropped(key, a[:, 0], b[:, 0]))
    found += [
        *_dropped(key, a, b),
        *_borders(key, a, b),
        *_channels(case, key, a, b),
        *_normal(case, key, a, b),
        *_positions(key, a, b),
        *_factor(key, a, b),
    ]
    return found


def _shapes(key: str, a: Array, b: Array) -> Cause:
    sentence = f"{inert(key)} has the shape {a.shape} in one and {b.shape} in the other."
    cause = "padding" if a.ndim == b.ndim and a.ndim > 2 else "flatten-order" if a.size == b.size else "forward-other"
    return Cause(cause, sentence, (), 0.8)


def _orders(case: Case, key: str, a: Array, b: Array) -> Iterator[Cause]:
    if distance(a.reshape(-1), b.reshape(-1)) > 1e-3 and same_values(a, b):
        line = ("the sorted values agree",)
        yield Cause("flatten-order", f"{inert(key)} holds the same values in another order.", line, 0.9)
        yield Cause("weight-layout", f"{inert(key)} holds the same values in another order.", line, 0.4)
    for other in case.keys("act"):
        pair = case.raw(other)
        if (
            other != key
            and pair is not None
            and pair[1].shape == a.shape
            and distance(a, pair[1].astype(np.float64)) < _SAME
        ):
            yield Cause("layer-order", f"{inert(key)} of the first is {inert(other)} of the second.", (), 0.85)
            return


def _precision(key: str, raw_a: Array, raw_b: Array, a: Array, b: Array) -> Iterator[Cause]:
    shares = short_share(raw_a), short_share(raw_b)
    gap = distance(a, b)
    line = (f"values whose low 13 bits are zero: {shares[0]:.0%} and {shares[1]:.0%}", f"distance {number(gap)}")
    if max(shares) > 0.9 and min(shares) < 0.5:
        yield Cause(
            "low-precision",
            f"{inert(key)} holds values of lower precision in the {'first' if shares[0] > shares[1] else 'second'}.",
            line,
            0.96,
        )
    elif 3e-5 < gap < COARSEST:
        size = np.abs(a) + np.abs(b)
        relative = (np.abs(a - b) / np.where(size > 0, size, 1.0))[size > 0.1 * size.mean()]
        even = float(np.median(relative)) / max(float(np.quantile(relative, 0.95)), 1e-300)
        bias = abs(float((a - b).mean())) / max(float(np.abs(a - b).mean()), 1e-300)
        if even > 0.05 and bias < 0.3:
            yield Cause(
                "low-precision",
                f"{inert(key)} differs as if rounded to a lower precision: by {number(gap)}, everywhere, with either sign.",
                (*line, ADVICE),
                0.45,
            )


def _dropped(key: str, a: Array, b: Array) -> Iterator[Cause]:
    for who, dropping, other in (("second", b, a), ("first", a, b)):
        lost = (dropping == 0) & (other != 0)
        live = (other != 0) & ~lost
        share = float(lost.sum() / max(1, int((other != 0).sum())))
        if not 0.01 < share < 0.99 or not live.any():
            continue
        constant, left = factor(other[live], dropping[live])
        both = float(((other == 0) & (dropping != 0)).mean())
        line = (
            f"{share:.1%} of the elements are zero in the {who} alone; the others are {number(constant)} times the other's",
        )
        if left < 1e-4 or both > 0.01:
            score = 0.94 if left < 1e-4 else 0.8
            words = f"{inert(key)} is dropped out: {share:.1%} of it is zero in the {who} alone."
            yield Cause("dropout", words, line, score if scattered(lost) else 0.5)
            return


def _borders(key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name a difference at the borders of images or sequences alone, channels second, or a shift by one."""
    if a.ndim not in (3, 4) or min(a.shape[2:]) < 3:
        return
    axes = a.ndim - 2
    inside = (slice(None), slice(None), *[slice(1, -1)] * axes)
    inner = distance(a[inside], b[inside])
    if inner < _SAME and np.abs(a - b).max() > 0:
        yield Cause(
            "padding", f"{inert(key)} differs at the borders alone.", (f"inner distance {number(inner)}",), 0.96
        )
        return
    for shift in product((-1, 0, 1), repeat=axes):
        if not shift[0]:
            continue
        one, other = (
            side[
                (
                    slice(None),
                    slice(None),
                    *(
                        slice(max(0, sign * by), size + min(0, sign * by))
                        for by, size in zip(shift, a.shape[2:], strict=True)
                    ),
                )
            ]
            for sign, side in ((1, a), (-1, b))
        )
        if one.size > 0.2 * a.size and min(one.shape[2:]) > 2 and distance(one[inside], other[inside]) < _SAME:
            by = ", ".join(map(str, shift))
            yield Cause("padding", f"{inert(key)} is moved by {by}: it is padded at other sides.", (), 0.95)
            return


def _channels(case: Case, key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name a difference that is one number, or one straight line, for each channel: of a norm, or of a factor of the input."""
    weight = case.raw(f"param/{key.partition('/')[2]}.weight")
    for axis in dict.fromkeys((1, a.ndim - 1)) if a.ndim > 1 and len(a) > 2 else ():
        x, y = (np.moveaxis(side, axis, 0).reshape(side.shape[axis], -1) for side in (a, b))
        if x.shape[1] < 3:
            continue
        gap = y - x
        constant = gap.mean(axis=1, keepdims=True)
        if np.linalg.norm(gap - constant) < 1e-3 * np.linalg.norm(gap):
            yield Cause(
                "bias-missing", f"{inert(key)} differs by one number a channel.", (f"channels of axis {axis}",), 0.9
            )
            return
        left = [affine(one, other)[2] for one, other in zip(x[:64], y[:64], strict=True)]
        apart = np.abs(gap).max(axis=1) > _SAME * np.abs(x).max()
        if apart.mean() < 0.5:  # a norm that differs does so in every channel
            continue
        if max(left) < 1e-3 * min(1.0, 1e3 * distance(a, b)):
            line = (f"a straight line for each channel of axis {axis}, left over {number(max(left))}",)
            causes = (("norm-mode", 0.6), ("norm-epsilon", 0.55), ("norm-axes", 0.5))
            if weight is not None and weight[0].ndim > 1:  # no norm's
                causes = (("forward-other", 0.6), ("pooling", 0.5), ("dropout", 0.4))
            for cause, score in causes:
                yield Cause(cause, f"{inert(key)} is scaled and shifted channel by channel.", line, score)
            return


def _normal(case: Case, key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name a norm over features that leaves rows of another length: its epsilon, whatever the inputs were.

    Without weight and bias its rows have a mean square of var / (var + epsilon), and point where they did.
    """
    layer = key.partition("/")[2]
    weight, bias = case.pair(f"param/{layer}.weight"), case.pair(f"param/{layer}.bias")
    if weight is None or weight[0].shape != a.shape[-1:] or len(weight[0]) < 3 or not weight[0].all():
        return
    x, y = ((side - (0.0 if bias is None else bias[0])) / weight[0] for side in (a, b))
    x, y = x.reshape(-1, len(weight[0])), y.reshape(-1, len(weight[0]))
    squares = np.stack([(side**2).mean(axis=1) for side in (x, y)])
    factors = (x * y).sum(axis=1) / np.maximum((x * x).sum(axis=1), 1e-300)
    apart = np.sign(factors - 1)
    if squares.max() > 1 + _SAME or distance(factors[:, None] * x, y) > 1e-4 * distance(x, y) + 1e-6:
        return
    if (apart == apart[0]).all():
        line = (f"rows are {number(float(factors.min()))} to {number(float(factors.max()))} times the first's",)
        yield Cause(
            "norm-epsilon", f"{inert(key)}'s normal rows are all {'longer' if apart[0] > 0 else 'shorter'}.", line, 0.9
        )


def _positions(key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name a difference at some positions of a sequence alone."""
    if a.ndim < 3 or a.shape[1] < 3 or "." in str(a.dtype):
        return
    axes = [1, 2] if a.ndim == 4 else [1]
    for axis in axes:
        x, y = (np.moveaxis(side, axis, 0) for side in (a, b))
        apart = np.array([distance(one, other) for one, other in zip(x, y, strict=True)]) > _SAME
        alike = int((~apart).sum())
        if apart.any() and 0 < alike < len(apart) and (apart[:1].all() != apart[-1:].all()):
            same = ", ".join(str(place) for place in np.flatnonzero(~apart)[:5])
            yield Cause(
                "attention-mask",
                f"{inert(key)} differs at {int(apart.sum())} of {len(apart)} positions alone.",
                (f"the same at {same}",),
                0.8 if distance(a, b) > SLIGHT else 0.4,
            )
            return


def _factor(key: str, a: Array, b: Array) -> Iterator[Cause]:
    constant, left = factor(a, b)
    if left < 1e-5 and abs(constant - 1) > 1e-6:
        line = (f"left over {number(left)}",)
        square = [
            n
            for n in range(2, 4097)
            if any(abs(each - n) < 1e-4 * n for each in (constant**2, 1 / constant**2 if constant else 0.0))
        ]
        scaled = Cause(
            "attention-scale", f"{inert(key)} is scaled by {number(constant)}.", line, 0.6 if square else 0.3
        )
        yield Cause("forward-other", f"{inert(key)} has another constant factor: {number(constant)}.", line, 0.5)
        if a.ndim >= 3:
            yield scaled
