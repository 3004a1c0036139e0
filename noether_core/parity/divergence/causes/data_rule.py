"""Name why a batch differs: its precision, order, scale, size or content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import ml_dtypes
import numpy as np

from noether_core.parity.divergence.causes.case import Array, Case
from noether_core.parity.divergence.causes.measures import affine, correlation, distance, explained, same_values
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

_SAME = 1e-5
_LIKE = 0.9  # correlation of inputs that are the same examples
_TYPES = (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16), ("float32", np.float32))


def data_causes(case: Case) -> list[Cause]:
    """Name why the data that first differ do."""
    pair = case.raw(case.first.key)
    if pair is None:
        return [Cause("batch-content", f"{inert(case.first.key)} is in one of the trainings alone.", (), 0.4)]
    key, (raw_a, raw_b) = case.first.key, pair
    a, b = raw_a.astype(np.float64), raw_b.astype(np.float64)
    found = list(_resized(case, key, a, b)) if len(np.atleast_1d(a)) != len(np.atleast_1d(b)) else []
    if a.shape == b.shape:
        found += [*_rounded(key, a, b), *_smoothed(key, a, b), *_scaled(key, a, b), *_padded(key, a, b)]
    elif a.size == b.size:
        found.append(
            Cause(
                "batch-preprocessing",
                f"{inert(key)} is laid out as {a.shape} in one and {b.shape} in the other.",
                (),
                0.9,
            )
        )
    found += [*_ordered(case, key, a, b), *_turned(key, a, b), *_moved(key, a, b), *_masks(key, a, b)]
    found += list(_beside(case, key))
    found.append(_content(key, a, b))
    return found


def _resized(case: Case, key: str, a: Array, b: Array) -> Iterator[Cause]:
    rows = [len(np.atleast_1d(side)) for side in (a, b)]
    sizes = [
        {len(np.atleast_1d(array)) for update in case.updates() if (array := side.array(update, key)) is not None}
        for side in (case.a, case.b)
    ]
    changes = max(len(each) for each in sizes) > 1 or case.update > 1
    sentence = f"{inert(key)} has {rows[0]} rows in one and {rows[1]} in the other"
    if changes:
        yield Cause(
            "batch-partial",
            f"{sentence}, at this update: a partial batch is kept by one side alone.",
            (f"rows at other updates: {sorted(sizes[0])} and {sorted(sizes[1])}",),
            0.95,
        )
    else:
        yield Cause("batch-content", f"{sentence}, at every update: the batch size differs.", (), 0.6)
        yield Cause(
            "accumulation", f"{sentence}, at every update: one may take several batches for an update.", (), 0.3
        )


def _rounded(key: str, a: Array, b: Array) -> Iterator[Cause]:
    for name, kind in _TYPES:
        for who, exact, rounded in (("second", a, b), ("first", b, a)):
            is_rounded = np.array_equal(exact.astype(kind).astype(np.float64), rounded)
            if is_rounded and not np.array_equal(exact, rounded):
                sentence = f"{inert(key)} is the other's, rounded to {name}, in the {who}."
                yield Cause("batch-dtype", sentence, ("equal to the last bit after rounding",), 0.98)
                return
    gap = distance(a, b)
    if _SAME < gap < 5e-3 and affine(a, b)[2] > 0.5 * gap:
        yield Cause("batch-dtype", f"{inert(key)} differs by {number(gap)} everywhere, as after rounding.", (), 0.5)


def _smoothed(key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name labels that are ones and zeros in one, and mixed with a constant in the other."""
    scale, shift, left = affine(a, b)
    for hard in (a, b):
        if hard.ndim >= 2 and set(np.unique(hard[:64]).tolist()) <= {0.0, 1.0} and left < _SAME and scale != 1:
            yield Cause(
                "label-smoothing",
                f"{inert(key)}: labels are {number(scale)} times the other's, and {number(shift)} more.",
                (),
                0.97,
            )
            return


def _scaled(key: str, a: Array, b: Array) -> Iterator[Cause]:
    scale, shift, left = affine(a, b)
    if left < 1e-3:
        sentence = f"{inert(key)} of the second is {number(scale)} times the first's, plus {number(shift)}."
        yield Cause("batch-preprocessing", sentence, (f"left over {number(left)}",), 0.9 * explained(left, 1e-4) + 0.05)
        return
    for axis in dict.fromkeys((a.ndim - 1, 1)) if a.ndim > 1 and len(a) > 2 else ():
        x, y = (np.moveaxis(side, axis, 0).reshape(side.shape[axis], -1) for side in (a, b))
        if not 1 < len(x) <= 4096 or x.shape[1] < 4:
            continue
        lefts = np.array([affine(one, other)[2] for one, other in zip(x, y, strict=True) if np.ptp(other) > 0])
        if lefts.size and np.median(lefts) < 1e-3:
            yield Cause(
                "batch-preprocessing",
                f"{inert(key)} is scaled and shifted feature by feature (axis {axis}).",
                (f"left over {number(float(np.median(lefts)))}",),
                0.9,
            )
            return
    rows = (
        [
            correlation(one, other)
            for one, other in zip(a.reshape(len(a), -1)[:64], b.reshape(len(b), -1)[:64], strict=True)
        ]
        if a.ndim > 1 and a[0].size > 2
        else []
    )
    if rows and float(np.median(rows)) > _LIKE:
        yield Cause(
            "batch-preprocessing",
            f"{inert(key)} holds the same examples, altered: correlation {number(float(np.median(rows)))} row by row.",
            (),
            0.7,
        )


def _padded(key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name a batch whose first rows are the same, and whose others are zeros or copies in one side."""
    if a.ndim < 1 or len(a) < 2:
        return
    same = [bool(distance(one, other) < _SAME) for one, other in zip(a, b, strict=True)]
    count = same.index(False) if False in same else len(same)
    if not 0 < count < len(a) or any(same[count:]):
        return
    for who, side in (("first", a), ("second", b)):
        tail = side[count:]
        copies = not np.abs(tail).any() or _found(tail, side[:count]) > 0.9
        if copies:
            yield Cause(
                "batch-partial",
                f"{inert(key)}: the last {len(a) - count} of {len(a)} rows are padding in the {who}.",
                (),
                0.93,
            )
            return


def _ordered(case: Case, key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name a batch whose rows the other side has too: in this update in another order, or in other updates."""
    if min(a.ndim, b.ndim) < 1 or a.shape[1:] != b.shape[1:]:
        return
    if a.shape == b.shape and distance(a, b) < 1e-2:
        return
    if len(a) == len(b) and _found(b, a) > 0.99 and _found(a, b) > 0.99 and (a.ndim > 1 or same_values(a, b)):
        yield Cause(
            "batch-order",
            f"{inert(key)} holds the same rows in another order.",
            ("every row is found in the other batch",),
            0.96,
        )
        return
    if a.ndim < 2 or a[0].size < 2 or len({_print(row) for row in b}) < 0.8 * len(b):
        return
    rows = [
        array.astype(np.float64)
        for update in case.updates()
        if (array := case.a.array(update, key)) is not None and array.shape[1:] == b.shape[1:]
    ]
    share = _found(b, np.concatenate(rows))
    if share > 0.2:
        score = 0.4 + 0.55 * share
        yield Cause(
            "batch-order",
            f"{share:.0%} of {inert(key)}'s rows are in the first's batches too, of this or another update.",
            (),
            score,
        )


def _masks(key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name arrays of ones and zeros, which say what counts."""
    if a.shape == b.shape and all(set(np.unique(side).tolist()) == {0.0, 1.0} for side in (a, b)):
        line = (f"ones: {int(a.sum())} and {int(b.sum())} of {a.size}",)
        yield Cause("loss-mask", f"{inert(key)}, of ones and zeros, is another mask.", line, 0.8)


def _found(rows: Array, among: Array) -> float:
    """Return the share of rows that are also among others, to about five digits."""
    known = {_print(row) for row in among}
    return float(np.mean([_print(row) in known for row in rows])) if len(rows) else 0.0


def _print(row: Array) -> bytes:
    return np.asarray(row).astype(np.float32).astype(np.float16).tobytes()


def _turned(key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name inputs that are flipped or transposed, example by example."""
    if a.size != b.size or a.ndim < 2 or b.ndim < 1 or not same_values(a[:8], b[:8]):
        return
    ways = {f"flipped along axis {axis}": np.flip(a, axis) for axis in range(1, a.ndim)}
    ways |= {
        f"with axes {i} and {j} exchanged": a.swapaxes(i, j) for i in range(1, a.ndim) for j in range(i + 1, a.ndim)
    }
    for words, turned in ways.items():
        if turned.shape == b.shape and distance(turned, b) < _SAME:
            yield Cause("batch-preprocessing", f"{inert(key)} of the second is the first's, {words}.", (), 0.97)
            return
    yield Cause("batch-preprocessing", f"{inert(key)} holds the same values in another order within examples.", (), 0.8)


def _moved(key: str, a: Array, b: Array) -> Iterator[Cause]:
    """Name inputs that are moved along an axis by a position or two, as targets are beside inputs, example by example."""
    if a.shape != b.shape:
        return
    for axis in range(1, a.ndim):
        for by in (1, 2):
            if a.shape[axis] < 2 * by + 2:
                continue
            inner, outer = (np.arange(by, a.shape[axis]), np.arange(a.shape[axis] - by))
            for words, one, other in (("later", inner, outer), ("earlier", outer, inner)):
                x, y = a.take(one, axis), b.take(other, axis)
                if x.any() and distance(x, y) < _SAME < distance(a, b):
                    sentence = f"{inert(key)} of the second is the first's, {by} places {words} along axis {axis}."
                    yield Cause("batch-preprocessing", sentence, (), 0.97)
                    return


def _beside(case: Case, key: str) -> Iterator[Cause]:
    """Name how other arrays of the batch differ: what was done to them may have been done before this one was made of them."""
    for other in case.differing("data"):
        pair = case.pair(other) if other != key else None
        for cause in () if pair is None else (*_turned(other, *pair), *_moved(other, *pair)):
            yield replace(cause, score=0.8 * cause.score)


def _content(key: str, a: Array, b: Array) -> Cause:
    like = correlation(a, b) if a.shape == b.shape and a.size > 1 else 0.0
    score = 0.65 if abs(like) < 0.5 else 0.3
    return Cause(
        "batch-content",
        f"{inert(key)} holds other values; their correlation with the first's is {number(like)}.",
        (),
        score,
    )
