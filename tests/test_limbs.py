"""Check the integers that expansions are written as against exact fractions, in every library, and against `merge`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from functools import reduce
from typing import Any

import jax
import numpy as np
import pytest
from array_libraries import LIBRARIES, Library, x64
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from noether_core import TrackAdditionalOutputsCallbackConfig
from noether_core.algebra.lift import lift
from noether_core.algebra.limbs import (
    EMPTY,
    LIMBS,
    decode,
    encode,
    ordered,
    unordered,
    window,
)
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.sums import Fields, Statistics
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import Partials, merge_partials
from noether_jax.binary32 import BINARY64

Host = np.ndarray[Any, Any]

KEYS = 50


def sums(seed: int) -> Iterator[Host]:
    """Yield numbers to be added up for each key: [processes, parts, keys]."""
    rng = np.random.default_rng(seed)
    for trial in range(30):
        shape = (rng.integers(1, 65), rng.integers(1, 9), KEYS)
        spread, middle = rng.choice([5, 60, 400, 1000]), rng.integers(-1074, 964)
        exponents = np.clip(middle + rng.integers(-spread, spread + 1, shape), -1080, 964)
        digits = rng.standard_normal(shape) if trial % 2 else rng.choice([-1.0, 1.0], shape)
        values = np.ldexp(digits, exponents)
        if trial % 3 == 0:  # what is left is far smaller than what was added
            values[shape[0] // 2 + 1 :] = -values[: shape[0] - shape[0] // 2 - 1]
        yield rng.permutation(values)


def grouped(rng: np.random.Generator, limbs: list[Host]) -> Host:
    """Return the sum of limbs, added two at a time as it comes."""
    while len(limbs) > 1:
        limbs.append(limbs.pop(rng.integers(len(limbs))) + limbs.pop(rng.integers(len(limbs))))
    return limbs[0]


def nearest_parts(total: Fraction, parts: int) -> list[float]:
    found = []
    for _ in range(parts):
        found.append(float(total))  # correctly rounded
        total -= Fraction(found[-1])
    return found


@pytest.mark.parametrize("seed", range(4))
def test_every_total_is_the_exact_one_in_parts_that_are_the_nearest(seed: int) -> None:
    for values in sums(seed):
        low, high = window(tuple(values.reshape(-1, KEYS)))
        total = grouped(np.random.default_rng(seed), [encode(NUMPY, tuple(parts), low, high - low) for parts in values])
        exact = [sum(map(Fraction, values[..., key].ravel().tolist()), Fraction(0)) for key in range(KEYS)]
        for length in (1, 2, 4):
            found = np.stack(decode(total, low, length), axis=1)
            wanted = np.array([nearest_parts(value, length) for value in exact]) + 0.0
            np.testing.assert_array_equal(found.view(np.int64), wanted.view(np.int64))


def test_no_number_needs_no_limb() -> None:
    nothing = (np.array([0.0, -0.0]), np.array([np.nan, -np.inf]))
    assert window(nothing) == EMPTY
    limbs = encode(NUMPY, nothing, LIMBS, 0)
    assert limbs.tolist() == [[1, 1]]
    np.testing.assert_array_equal(decode(limbs, LIMBS, 2), np.full((2, 2), np.nan))


def test_no_key_is_no_trouble() -> None:
    limbs = encode(NUMPY, (np.zeros(0), np.zeros(0)), 30, 3)
    assert limbs.shape == (4, 0)
    assert [part.shape for part in decode(limbs, 30, 2)] == [(0,), (0,)]


GREATEST, LEAST = np.finfo(np.float64).max, 2.0**-1074


def test_the_greatest_and_the_least_number_lie_in_the_outermost_limbs() -> None:
    assert window((np.array([GREATEST, LEAST]),)) == (0, LIMBS)
    assert window((np.array([1.0]),)) == (33, 34)
    assert window((np.array([2.0**-1042]), np.array([LEAST]))) == (0, 2)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_2_to_28_processes_with_8_parts_find_room(sign: float) -> None:
    numbers = sign * (2.0**53 - 1) * np.array([2.0**exponent for exponent in range(-1074, 940, 5)])
    total = encode(NUMPY, (numbers,) * 8, 0, LIMBS)
    for _ in range(28):
        assert (np.abs(total) < 2**62).all()
        total = total + total
    found = decode(total, 0, 2)
    np.testing.assert_array_equal(found, (numbers * 2.0**31, np.zeros(len(numbers))))


def test_the_parts_depend_on_the_total_alone() -> None:
    rng = np.random.default_rng(0)
    limbs = rng.integers(-(2**62), 2**62, (9, 200))
    limbs[-1] = 0
    totals = [sum(limb << (32 * at) for at, limb in enumerate(column)) for column in limbs[:-1].T.tolist()]
    wanted = np.array([nearest_parts(Fraction(total) / 2 ** (1074 - 640), 4) for total in totals]).T
    for _ in range(20):
        moved = rng.integers(-(2**29), 2**29, (7, 200))  # from a limb to the next
        spread = limbs.copy()
        spread[:-2] -= moved << 32
        spread[1:-1] += moved
        np.testing.assert_array_equal(decode(spread, 20, 4), wanted)


BEYOND = [
    ([GREATEST, GREATEST], math.nan),
    ([-GREATEST, -GREATEST, GREATEST / 2], math.nan),
    ([GREATEST, GREATEST, -GREATEST], GREATEST),  # a running sum has left the range; the total has not
    ([math.inf, 1.0], math.nan),
    ([math.nan, 1.0], math.nan),
    ([GREATEST, 2.0**969], GREATEST),
    ([GREATEST, 2.0**970], math.nan),  # a tie with 2^1024
]


@pytest.mark.parametrize(("values", "wanted"), BEYOND)
def test_a_total_beyond_the_range_is_nan(values: list[float], wanted: float) -> None:
    limbs = sum(encode(NUMPY, (np.array([value]),), 0, LIMBS) for value in values)
    np.testing.assert_array_equal(decode(limbs, 0, 2)[0], wanted)


# ---------------------------------------------------------------------- every library, many devices

WIDE = [library for library in LIBRARIES if library.name != "jax32"]
each_library = pytest.mark.parametrize("library", WIDE, ids=repr)

HARD = np.array(
    [0.0, -0.0, 1.0, -1.0, GREATEST, -GREATEST, LEAST, -LEAST, 2.0**-1022, -(2.0**-1022) + LEAST, math.inf, -math.inf]
)


def in_all_limbs(ops: Any, *parts: Any) -> Any:
    return encode(ops, parts, 0, LIMBS)


def in_few_limbs(ops: Any, *parts: Any) -> Any:
    return encode(ops, parts, 30, 5)


@each_library
def test_every_library_gives_the_same_limbs(library: Library) -> None:
    for values in (*(values[0] for values in sums(0)), HARD[None], np.array([[math.nan, 1.0]])):
        for function in (in_all_limbs, in_few_limbs):
            found = library.call(function, *values)
            assert found.dtype == np.int64
            np.testing.assert_array_equal(found, function(NUMPY, *values))


@each_library
def test_extremes_compare_as_their_integers_do(library: Library) -> None:
    rng = np.random.default_rng(0)
    values = np.concatenate([HARD, np.ldexp(rng.standard_normal(500), rng.integers(-1080, 1020, 500))])
    places = library.call(ordered, values)
    assert places.dtype == np.int64
    np.testing.assert_array_equal(places[:, None] < places, values[:, None] < values)
    back = library.call(unordered, places)
    np.testing.assert_array_equal(back.view(np.int64), (values + 0.0).view(np.int64))


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_a_psum_over_devices_adds_limbs(axis_type: AxisType) -> None:
    values = (
        np.random.default_rng(0).standard_normal((8, 4, KEYS))
        * np.array([1.0, 2.0**-53, 2.0**-106, 2.0**-159])[:, None]
    )
    wanted = sum(encode(NUMPY, tuple(parts), 25, 10) for parts in values)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(axis_type,))

    def added(values: jax.Array) -> jax.Array:
        return jax.lax.psum(encode(BINARY64, tuple(values[0]), 25, 10), "data")

    def of_all(values: jax.Array) -> jax.Array:  # the partitioner adds
        return encode(BINARY64, tuple(values.swapaxes(0, 1)), 25, 10).sum(1)

    with x64():
        spread = jax.device_put(values, NamedSharding(mesh, P("data")))
        mapped = jax.jit(jax.shard_map(added, mesh=mesh, in_specs=P("data"), out_specs=P()))
        for function in (mapped, jax.jit(of_all)):
            np.testing.assert_array_equal(np.asarray(function(spread)), wanted)


# ---------------------------------------------------------------------- the same numbers as of merged partials

CONFIG = TrackAdditionalOutputsCallbackConfig(
    keys=["value"], reduce=["mean", "sum", "min", "max", "std", "var", "count"], every_n_updates=1
)


def of_values(values: Host, weights: Host | None) -> Partials:
    """Return the partials of one process: shape [rows, keys]."""
    fields = Fields(squares=True, extremes=True, weights=weights is not None)
    with np.errstate(all="ignore"):
        statistics = NUMPY.fold(lift(NUMPY, values, np.arange(len(values))[:, None], fields, weights))
    keys, whole = values.shape[1], values.dtype.kind == "i"
    flags = (np.full(keys, flag) for flag in (True, whole, weights is not None))
    return Partials(tuple(map("value/{}".format, range(keys))), statistics, np.full(keys, len(values)), *flags)


def pooled(partials: list[Partials]) -> Partials:
    """Return what a pool would: everything added as integers, extremes by their order."""
    every = [part.statistics for part in partials]

    def total(name: str) -> Any:
        expansions = [getattr(statistics, name) for statistics in every]
        if not expansions[0]:
            return ()
        low, high = window(tuple(part for parts in expansions for part in parts))
        limbs = max(high - low, 0)
        return decode(sum(encode(NUMPY, parts, low, limbs) for parts in expansions), low, len(expansions[0]))

    def outermost(name: str, best: Any) -> Any:
        ends = [zip(*getattr(statistics, name), strict=True) for statistics in every]  # for each key its two parts
        return tuple(map(np.array, zip(*map(best, zip(*ends, strict=True)), strict=True)))

    counts = {name: sum(getattr(statistics, name) for statistics in every) for name in ("nan", "positive", "negative")}
    sums = {name: total(name) for name in ("total", "squares", "weighted", "weights")}
    ends = {"minimum": outermost("minimum", min), "maximum": outermost("maximum", max)}
    first = reduce(np.minimum, [statistics.first_nonfinite for statistics in every])
    elements = sum(part.elements for part in partials)
    return partials[0]._replace(
        statistics=Statistics(**sums, **ends, **counts, first_nonfinite=first), elements=elements
    )


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("kind", ["plain", "weighted", "whole", "with NaN and infinities", "huge", "tiny", "zeros"])
def test_what_is_computed_of_pooled_partials_is_what_is_of_merged_ones(kind: str, nonfinite: str) -> None:
    rng = np.random.default_rng(list(kind.encode()))
    computation = Computation(CONFIG.model_copy(update={"nonfinite": nonfinite}))
    for _ in range(20):
        partials = []
        for _ in range(rng.integers(1, 9)):
            values = np.ldexp(rng.standard_normal((rng.integers(1, 6), 20)), rng.integers(-8, 8))
            if kind == "whole":
                values = rng.integers(-(2**62), 2**62, values.shape)
            if kind == "with NaN and infinities":
                values = np.where(rng.random(values.shape) < 0.1, rng.choice([np.nan, np.inf, -np.inf]), values)
            values = values * {"huge": 2.0**1013, "tiny": 2.0**-1060, "zeros": -0.0}.get(kind, 1)
            weights = rng.integers(0, 4, values.shape) / 2 if kind == "weighted" else None
            partials.append(of_values(values, weights))
        found = computation.compute(pooled(partials), 1)
        merged = computation.compute(reduce(merge_partials, partials), 1)
        assert not found.errors
        assert not merged.errors
        assert list(map(repr, found.values)) == list(map(repr, merged.values))
