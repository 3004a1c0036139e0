from __future__ import annotations

import math
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_libraries import LIBRARIES, Library, folded, lifting, merged
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import noether_jax
import noether_torch
from noether_core import TrackAdditionalOutputsCallbackConfig, read_run
from noether_core.algebra.exact import nearest, root
from noether_core.algebra.numpy_ops import NUMPY
from noether_core.algebra.sums import Fields, Statistics, each, empty
from noether_core.reduce.computed import Computed
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import Newest, Partials
from noether_jax.binary32 import BINARY32
from parity_tests import reference

NAN, INF = math.nan, math.inf
MOMENTS = ["mean", "std", "var"]
EVERYTHING = ["mean", "sum", "min", "max", "std", "var", "count"]

each_library = pytest.mark.parametrize("library", LIBRARIES, ids=repr)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
few = settings(max_examples=10)


# ---------------------------------------------------------------------- rounding once


def bits(value: float, dtype: Any) -> bytes:
    return np.asarray(value, dtype).tobytes()


@each_dtype
@given(
    st.fractions()
    | st.builds(lambda m, e: Fraction(m) * Fraction(2) ** e, st.integers(-(2**70), 2**70), st.integers(-1200, 1000))
)
def test_nearest_is_the_nearest(dtype: Any, value: Fraction) -> None:
    assume(abs(value) < Fraction(float(np.finfo(dtype).max)))
    assert abs(nearest(value, dtype)) == abs(float(reference.nearest(value, dtype)))


@each_dtype
@given(st.floats(allow_nan=False, allow_infinity=False, width=32), st.integers(1, 200))
def test_a_tie_goes_to_the_even_mantissa_and_a_hair_more_does_not(dtype: Any, number: float, deep: int) -> None:
    low = dtype(number)
    with np.errstate(over="ignore", under="ignore"):
        high = np.nextafter(low, dtype(INF))
    assume(np.isfinite(high) and low)
    middle = (Fraction(float(low)) + Fraction(float(high))) / 2
    hair = (Fraction(float(high)) - Fraction(float(low))) / 2 ** (deep + 1)
    even = low if int(low.view(np.int32 if dtype is np.float32 else np.int64)) % 2 == 0 else high
    assert nearest(middle, dtype) == even
    assert nearest(middle + hair, dtype) == high
    assert nearest(middle - hair, dtype) == low


def test_no_number_is_rounded_twice_on_its_way_to_float32() -> None:
    above_a_tie = 1 + Fraction(1, 2**24) + Fraction(1, 2**60)  # as float64 it is the tie itself, which would go to 1
    assert np.float32(float(above_a_tie)) == 1
    assert nearest(above_a_tie, np.float32) == 1 + 2**-23
    below_a_tie = 1 + Fraction(3, 2**24) - Fraction(1, 2**60)  # as float64 the tie, which would go up
    assert np.float32(float(below_a_tie)) == 1 + 2**-22
    assert nearest(below_a_tie, np.float32) == 1 + 2**-23
    assert nearest(-above_a_tie, np.float32) == -1 - 2**-23


@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (Fraction(0), np.float32, 0.0),
        (Fraction(1, 2**149), np.float32, 2.0**-149),
        (Fraction(1, 2**150), np.float32, 0.0),  # a tie between 0 and the least subnormal
        (Fraction(1, 2**150) + Fraction(1, 2**400), np.float32, 2.0**-149),
        (Fraction(3, 2**150), np.float32, 2.0**-148),
        (Fraction(5, 2**150), np.float32, 2.0**-148),
        (Fraction(1, 2**1075), np.float64, 0.0),
        (Fraction(3, 2**1075), np.float64, 2.0**-1073),
        (Fraction(2**128) - 2**104, np.float32, float(np.finfo(np.float32).max)),
        (Fraction(2**128) - 2**103 - 1, np.float32, float(np.finfo(np.float32).max)),
        (Fraction(2**128) - 2**103, np.float32, INF),  # a tie with 2^128, which float32 lacks
        (Fraction(-(2**128)), np.float32, -INF),
        (Fraction(2**1024), np.float64, INF),
        (Fraction(-(10**400)), np.float32, -INF),
    ],
)
def test_nearest_at_the_ends_of_the_range(value: Fraction, dtype: Any, expected: float) -> None:
    assert nearest(value, dtype) == expected


@given(
    st.fractions(min_value=0)
    | st.builds(lambda m, e: Fraction(m) * Fraction(4) ** e, st.integers(0, 2**200), st.integers(-600, 400))
)
@example(Fraction(1, 3))
@example(Fraction(10**40 + 1))
@example(Fraction(1, 2**1074))
def test_a_root_has_120_bits_and_never_looks_like_a_tie(value: Fraction) -> None:
    found = root(value)
    assert abs(found**2 - value) <= value / 2**118
    if found**2 != value:  # it ends in a one, however long: no rounding takes it for a tie
        assert math.log2(found.numerator) > 118


@each_dtype
@given(st.integers(1, 2**53 - 1))
def test_the_root_of_a_square_is_exact(dtype: Any, number: int) -> None:
    value = Fraction(float(dtype(number)))
    assert nearest(root(value**2), dtype) == value


# ---------------------------------------------------------------------- from values to what is logged


def config(reduce: Any = EVERYTHING, **fields: Any) -> TrackAdditionalOutputsCallbackConfig:
    return TrackAdditionalOutputsCallbackConfig(
        **{"every_n_updates": 1, "keys": ["x"], "reduce": reduce, "save_output": True, **fields}
    )


def reduced(library: Library, values: Any, weights: Any = None, split: int | None = None, **given: Any) -> Computed:
    """Return what the values of one key, one a step, give; `split`: reduced in two parts that are then merged."""
    values = np.asarray(values)
    fields = Fields(squares=True, extremes=True, weights=weights is not None)
    more = () if weights is None else (np.asarray(weights)[:, None],)
    lifted = library.call(lifting(fields), values[:, None], library.place([[1]]), *more)
    if split is None:
        sums = folded(library, lifted)
    else:
        halves = (Statistics(*(cut(field, part) for field in lifted)) for part in (slice(split), slice(split, None)))
        sums = merged(library, *(folded(library, half) for half in halves))
    if library.ops is BINARY32:
        sums = BINARY32.as_binary64(each(np.asarray, sums))
    wanted = config(weight=None if weights is None else "w", **given)
    return Computation(wanted).compute(partials_of(sums, values, weights is not None), 1)


def partials_of(sums: Statistics, values: np.ndarray[Any, Any], is_weighted: bool = False, **beside: Any) -> Partials:
    flags = (values.dtype == np.float64, values.dtype.kind in "iub", is_weighted)
    return Partials(
        ("x",), each(np.asarray, sums), np.array([len(values)]), *(np.array([flag]) for flag in flags), **beside
    )


def cut(field: Any, part: slice) -> Any:
    return tuple(array[part] for array in field) if isinstance(field, tuple) else field[part]


def logged(result: Computed) -> dict[str, Any]:
    return {key.split("/")[1]: value for key, value in result.scalars().items()}


def exact(values: Any, reduction: str, weights: Any = None) -> float:
    """Return the correctly rounded moment, by fractions and decimals that share no code with ours."""
    pairs = [(x.item(), w) for x, w in zip(values, [1] * len(values) if weights is None else weights, strict=True) if w]
    return float(reference.moment(reduction, pairs, values.dtype.type))


@each_library
@each_dtype
@pytest.mark.parametrize(("offset", "spread"), [(1e6, 1e-2), (1e6, 1.0), (-3.0, 1e3), (0.0, 1e-8)])
def test_moments_are_correctly_rounded_whatever_the_split(
    library: Library, dtype: Any, offset: float, spread: float
) -> None:
    for seed in range(3):
        values = np.random.default_rng(seed).normal(offset, spread, 32).astype(dtype)
        expected = {reduction: exact(values, reduction) for reduction in MOMENTS}
        for split in (None, 16):
            found = logged(reduced(library, values, split=split, reduce=MOMENTS))
            assert found == expected, (seed, split)


@each_library
@each_dtype
@few
@given(st.integers(0, 2**32), st.booleans())
def test_weighted_moments_are_correctly_rounded(library: Library, dtype: Any, seed: int, is_mask: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(100.0, 1.0, 32).astype(dtype)
    weights = rng.integers(0, 2, 32).astype(np.float32) if is_mask else rng.uniform(0.1, 9.0, 32).astype(np.float32)
    weights[0] = 1.0
    found = logged(reduced(library, values, weights, reduce=MOMENTS))
    assert found == {reduction: exact(values, reduction, weights.tolist()) for reduction in MOMENTS}


@each_library
@each_dtype
@pytest.mark.parametrize("value", [0.1, 1e6 + 1 / 3, -3e7])
def test_constants_have_no_spread(library: Library, dtype: Any, value: float) -> None:
    values = np.full(32, value, dtype)
    found = logged(reduced(library, values, weights=np.full(32, 0.3, np.float32)))
    assert (found["std"], found["var"], found["mean"]) == (0.0, 0.0, float(values[0]))
    assert (found["min"], found["max"], found["count"]) == (float(values[0]), float(values[0]), 32)


@each_library
def test_what_weighs_nothing_counts_as_nothing(library: Library) -> None:
    values = np.array([NAN, 1.0, INF, 3.0, -INF, 7.0], np.float32)
    found = logged(reduced(library, values, np.array([0, 1, 0, 3, 0, 0], np.float32)))
    assert found == {
        "mean": 2.5,
        "sum": 4.0,
        "min": 1.0,
        "max": 3.0,
        "std": 0.8660253882408142,
        "var": 0.75,
        "count": 6,
    }
    nothing_at_all = logged(reduced(library, values, np.zeros(6, np.float32)))
    assert nothing_at_all == {"sum": 0.0, "count": 6}


@each_library
@pytest.mark.parametrize("dtype", [np.int64, np.uint64, np.bool_])
def test_sums_and_extremes_of_ints_are_exact_ints(library: Library, dtype: Any) -> None:
    low, high = (0, 1) if dtype is np.bool_ else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    values = np.array([high, high, low, high, 1], dtype)
    result = reduced(library, values, reduce=["sum", "min", "max", "count"])
    assert logged(result) == {"sum": 3 * high + low + 1, "min": low, "max": high, "count": 5}
    assert all(type(value) is int for value in result.scalars().values())
    total = 3 * high + low + 1
    assert result.arrays()["x/sum"].dtype == (np.int64 if total < 2**63 else np.uint64 if total < 2**64 else np.float64)


@pytest.mark.parametrize(
    ("odd", "expected"),
    [
        ([NAN], dict.fromkeys(["mean", "sum", "min", "max", "std", "var"], NAN)),
        ([INF, -INF], {"mean": NAN, "sum": NAN, "min": -INF, "max": INF, "std": NAN, "var": NAN}),
        ([INF], {"mean": INF, "sum": INF, "min": 1.0, "max": INF, "std": NAN, "var": NAN}),
        ([-INF, -INF], {"mean": -INF, "sum": -INF, "min": -INF, "max": 2.0, "std": NAN, "var": NAN}),
    ],
)
@each_library
def test_what_is_not_finite_comes_back_as_ieee_754_has_it_or_is_left_out(
    library: Library, odd: list[float], expected: dict[str, float]
) -> None:
    values = np.array([1.0, *odd, 2.0], np.float32)
    kept = logged(reduced(library, values))
    assert kept.pop("nonfinite") == len(odd)
    assert kept.pop("count") == len(values)
    assert [bits(kept[name], np.float64) for name in expected] == [bits(x, np.float64) for x in expected.values()]
    left_out = logged(reduced(library, values, nonfinite="skip"))
    assert left_out == {
        "mean": 1.5, "sum": 3.0, "min": 1.0, "max": 2.0, "std": 0.5, "var": 0.25, "count": 2, "nonfinite": len(odd)
    }  # fmt: skip


@each_library
def test_nothing_finite_has_no_mean_once_the_rest_is_left_out(library: Library) -> None:
    found = logged(reduced(library, np.array([NAN, INF], np.float32), nonfinite="skip"))
    assert found == {"sum": 0.0, "count": 0, "nonfinite": 2}
    only = logged(reduced(library, np.array([INF], np.float32)))
    assert (only["min"], only["max"], only["mean"]) == (INF, INF, INF)


def test_the_last_value_belongs_to_the_intervals_last_update() -> None:
    values = np.array([2.5], np.float32)
    partials = partials_of(empty(NUMPY, Fields(), 1), values, last={"x": Newest(values.reshape(()), 4)})
    last = Computation(config("last"))
    assert last.compute(partials, 4).scalars() == {"x/U1": 2.5}
    assert last.compute(partials, 5).scalars() == last.compute(partials, 5).arrays() == {}
    bad = partials._replace(last={"x": Newest(np.array(NAN, np.float32), 4)})
    assert Computation(config("last", nonfinite="skip")).compute(bad, 4).scalars() == {}


@pytest.mark.parametrize("front_end", [noether_jax, noether_torch])
@pytest.mark.parametrize("is_host", [True, False], ids=["numpy", "framework"])
@pytest.mark.parametrize("size", [3, 1025])
@each_dtype
def test_a_large_array_with_nan_and_infinities_logs_what_a_small_one_does(
    front_end: Any, is_host: bool, size: int, dtype: Any, tmp_path: Path
) -> None:
    values = np.full(size, 2.0, dtype)
    values[:3] = [INF, -INF, NAN]
    given = values if is_host else front_end.Run.backend.from_numpy(values)
    entry = {"every_n_updates": 1, "keys": ["x"], "reduce": ["sum", "max", "std", "count"], "nonfinite": "skip"}
    with front_end.Run(tmp_path, [entry]) as run:
        run.step({"x": given})
    series = {key: points.value.tolist()[0] for key, points in read_run(tmp_path).series.items()}
    expected = {"x/sum/U1": 2.0 * (size - 3), "x/count/U1": size - 3, "x/nonfinite/U1": 3}
    assert series == (expected if size == 3 else {**expected, "x/max/U1": 2.0, "x/std/U1": 0.0})


NAMES = ["a", "a/mean", "a/max", "a/mean/max", "a/nonfinite", "a/nonfinite/nonfinite"]
KEYS = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)
WANTED = st.sampled_from(["mean", "max", ["mean", "max"], ["max"]])


@given(keys=KEYS, reduce=st.dictionaries(st.sampled_from(["a", "a/mean", "a/max"]), WANTED, max_size=3) | WANTED)
def test_no_value_takes_another_ones_name(keys: list[str], reduce: Any) -> None:
    config = TrackAdditionalOutputsCallbackConfig(every_n_updates=1, patterns=[""], reduce=reduce, save_output=True)
    with tempfile.TemporaryDirectory() as path:
        with noether_torch.Run(path, [config]) as run:
            run.step(dict.fromkeys(keys, math.nan))
        read = read_run(path)
        arrays = sum(len(file.load()) for file in read.arrays)
    values = sum(len(config.reductions(key)) for key in keys)
    assert sum(map(len, read.series.values())) == values + len(keys)
    assert arrays == values
