from __future__ import annotations

import math
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from array_libraries import (
    LIBRARIES,
    Library,
    folded,
    identity_of,
    lifting,
    lifting_array,
    merged,
    row,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from noether_core.algebra.expansion import add, exact, is_less, multiply, two_product, two_sum
from noether_core.algebra.position import NEVER, decode_position, encode_position
from noether_core.algebra.sums import Fields, Statistics, fold_tree

NAN, INF = math.nan, math.inf
ALL = Fields(squares=True, extremes=True)
PLAIN = Fields()
WEIGHTED = Fields(squares=True, extremes=True, weights=True)
ROWS, SLOTS = 6, 3

each_library = pytest.mark.parametrize("library", LIBRARIES, ids=repr)
few = settings(max_examples=10)

# magnitudes whose sums and squares every expansion here holds without rounding, whatever cancels
float32s = st.floats(-(2.0**16), 2.0**16, width=32, allow_subnormal=False).map(
    lambda value: float(np.float32(round(value * 2**12) / 2**12))
)
odd_float32s = float32s | st.sampled_from([NAN, INF, -INF])


def table(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    cells = st.lists(elements, min_size=ROWS * SLOTS, max_size=ROWS * SLOTS)
    return cells.map(lambda values: np.array(values, np.float32).reshape(ROWS, SLOTS))


def codes(library: Library, first: int = 1) -> np.ndarray[Any, Any]:
    return library.place([[encode_position(first + at, at)] for at in range(ROWS)])


def same(a: Statistics, b: Statistics) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def number(expansion: Any, at: Any = ()) -> Fraction:
    return exact(tuple(part[at] for part in expansion))


def fractions(values: Any) -> list[Fraction]:
    return [Fraction(value.item()) for value in np.asarray(values).reshape(-1) if math.isfinite(value.item())]


# ---------------------------------------------------------------------- error-free transformations


def hardware(library: Library, most: int) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    """Return vectors of 8 numbers of a library's own dtype, of magnitudes between 2^-most and 2^most, or 0."""
    width = np.finfo(library.float_dtype).nmant + 1
    mantissas = st.lists(st.integers(-(2**width) + 1, 2**width - 1), min_size=8, max_size=8)
    exponents = st.lists(st.integers(-most + width, most), min_size=8, max_size=8)
    return st.builds(lambda m, e: np.ldexp(np.array(m, library.float_dtype), np.array(e) - width), mantissas, exponents)


def plain_two_sum(ops: Any, a: Any, b: Any) -> Any:
    return two_sum(a, b)


@each_library
@few
@given(data=st.data())
def test_two_sum_and_two_product_lose_nothing(library: Library, data: st.DataObject) -> None:
    most = 30 if library.ops.parts == 4 else 200
    a, b = (data.draw(hardware(library, most)) for _ in range(2))
    total = library.call(plain_two_sum, a, b)
    product = library.call(two_product, a, b)
    for at in range(8):
        x, y = Fraction(float(a[at])), Fraction(float(b[at]))
        assert number(total, at) == x + y
        assert total[0][at] == a[at] + b[at]
        assert number(product, at) == x * y
        assert product[0][at] == a[at] * b[at]


def long_expansion(rng: np.random.Generator, library: Library, length: int) -> Any:
    """Return an expansion of full length: each part at most half a unit in the last place of the one before."""
    width = np.finfo(library.float_dtype).nmant + 1
    scales = 2.0 ** (60 - (width + 1) * np.arange(length) - rng.integers(0, 3, (8, 1)).cumsum(axis=1))
    numbers = rng.uniform(0.5, 1.0, (8, length)) * rng.choice([-1.0, 1.0], (8, length)) * scales
    return tuple(numbers.T.astype(library.float_dtype))


def plain_add(length: int, ops: Any, *parts: Any) -> Any:
    return add(parts[:length], parts[length:])


def plain_less(length: int, ops: Any, *parts: Any) -> Any:
    return is_less(parts[:length], parts[length:])


ADDING = {length: partial(plain_add, length) for length in (2, 4, 6)}
LESS = {length: partial(plain_less, length) for length in (2, 4, 6)}


@each_library
@few
@given(seed=st.integers(0, 2**32))
def test_the_sum_of_two_expansions_is_off_by_the_last_parts_last_bits_at_most(library: Library, seed: int) -> None:
    rng = np.random.default_rng(seed)
    width = np.finfo(library.float_dtype).nmant + 1
    for length in (library.ops.parts, library.ops.deep):
        a, b = (long_expansion(rng, library, length) for _ in range(2))
        total = library.call(ADDING[length], *a, *b)
        for at in range(8):
            x, y = number(a, at), number(b, at)
            assert abs(number(total, at) - (x + y)) <= (abs(x) + abs(y)) / 2 ** (length * width - 4)


@each_library
@few
@given(seed=st.integers(0, 2**32), is_near=st.booleans())
def test_one_expansion_is_less_than_another_exactly_where_its_number_is(
    library: Library, seed: int, is_near: bool
) -> None:
    rng, length = np.random.default_rng(seed), library.ops.parts
    a = long_expansion(rng, library, length)
    b = (*a[:-1], -a[-1]) if is_near else long_expansion(rng, library, length)
    less = library.call(LESS[length], *a, *b)
    assert less.tolist() == [number(a, at) < number(b, at) for at in range(8)]


def square(ops: Any, *parts: Any) -> Any:
    return multiply(ops, parts, parts, ops.deep)


@each_library
def test_the_square_of_a_64_bit_int_is_exact(library: Library) -> None:
    values = np.array([0, 1, -1, 2**63 - 1, -(2**63), 2**53 + 1, -(2**32) - 1, 123456789123456789], np.int64)
    wide, _ = library.call(widened, values)
    squares = library.call(square, *wide)
    assert [number(squares, at) for at in range(8)] == [value * value for value in values.tolist()]


# ---------------------------------------------------------------------- widening


def widened(ops: Any, values: Any) -> Any:
    return ops.widen(values)


BOUNDS = {
    "bool": [False, True],
    **{
        name: [np.iinfo(name).min, np.iinfo(name).max, 0, 1, np.iinfo(name).max // 3]
        for name in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
    },
    **{name: [0.1, -3.7, 60000.0, 2**-10] for name in ("float16", "bfloat16", "float32", "float8_e5m2")},
    "float8_e4m3fn": [0.1, -3.7, 448.0],
    "float64": [math.pi, -1 / 3, 2.0**60 + 1024, 1.0 + 2**-52],
}


@each_library
@pytest.mark.parametrize("dtype", BOUNDS)
def test_every_dtype_is_widened_exactly(library: Library, dtype: str) -> None:
    given = BOUNDS[dtype]
    values = np.array(given, None if dtype.startswith(("float", "bfloat")) else dtype)
    values = values.astype(getattr(ml_dtypes, dtype, dtype))
    wide, is_short = library.call(widened, values)
    numbers = [number(wide, at) for at in range(len(values))]
    assert numbers == [Fraction(float(value) if "float" in dtype else int(value)) for value in values]
    if is_short:  # then one part holds any product of two
        products = [x * y for x in numbers for y in numbers]
        assert len(wide) == 1
        assert all(Fraction(float(library.float_dtype(float(product)))) == product for product in products)


@each_library
@few
@given(data=st.data())
def test_64_bit_ints_are_widened_and_summed_exactly(library: Library, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.int64, np.uint64]))
    info = np.iinfo(dtype)
    values = data.draw(st.lists(st.integers(int(info.min), int(info.max)), min_size=8, max_size=8))
    wide, _ = library.call(widened, np.array(values, dtype))
    assert [number(wide, at) for at in range(8)] == values
    total = library.call(lifting_array(PLAIN), np.array(values, dtype), library.place([[5]]))
    assert number(total.total, 0) == sum(values)


# ---------------------------------------------------------------------- the monoid's laws


@each_library
@few
@given(values=table(odd_float32s))
def test_merging_with_nothing_changes_nothing(library: Library, values: Any) -> None:
    sums = library.call(lifting(ALL), values, codes(library))
    empty = library.call(identity_of(SLOTS, ALL), library.place([0]))
    one = row(sums, 0)
    assert same(merged(library, empty, one), one)
    assert same(merged(library, one, empty), one)
    assert same(merged(library, empty, empty), empty)


@each_library
@few
@given(values=table(odd_float32s), weights=table(float32s.map(abs)))
def test_merging_is_commutative(library: Library, values: Any, weights: Any) -> None:
    sums = library.call(lifting(WEIGHTED), values, codes(library), weights)
    a, b = (
        folded(library, jax.tree.map(lambda array, part=part: array[part], sums)) for part in (slice(3), slice(3, 6))
    )
    one, other = merged(library, a, b), merged(library, b, a)
    assert same(normalised(one), normalised(other))


def normalised(sums: Statistics) -> Statistics:
    """Return sums with each expansion as the fraction it is: parts may share a number's bits out in more than one way."""
    return Statistics(*(tuple(numbers(field)) if isinstance(field, tuple) else field for field in sums))


def numbers(expansion: Any) -> list[Any]:
    slots = range(len(expansion[0])) if expansion else ()
    return [number(expansion, at) if np.isfinite(expansion[0][at]) else float(expansion[0][at]) for at in slots]


@each_library
@few
@given(values=table(odd_float32s), weights=table(float32s.map(abs)), data=st.data())
def test_every_order_and_grouping_gives_the_exact_sums(
    library: Library, values: Any, weights: Any, data: st.DataObject
) -> None:
    sums = library.call(lifting(WEIGHTED), values, codes(library), weights)
    parts = [row(sums, at) for at in data.draw(st.permutations(range(ROWS)))]
    while len(parts) > 1:
        at = data.draw(st.integers(0, len(parts) - 2))
        parts[at : at + 2] = [merged(library, parts[at], parts[at + 1])]
    for total in (parts[0], folded(library, sums)):
        for slot in range(SLOTS):
            check_sums(
                total, slot, values[:, slot], weights[:, slot], [encode_position(1 + at, at) for at in range(ROWS)]
            )


def check_sums(total: Statistics, slot: int, values: Any, weights: Any, places: list[int]) -> None:
    counts = [(value, weight, place) for value, weight, place in zip(values, weights, places, strict=True) if weight]
    pairs = [(Fraction(float(v)), Fraction(float(w))) for v, w, _ in counts if math.isfinite(v)]
    assert number(total.total, slot) == sum(x for x, _ in pairs)
    assert number(total.squares, slot) == sum(w * x * x for x, w in pairs)
    assert number(total.weighted, slot) == sum(w * x for x, w in pairs)
    assert number(total.weights, slot) == sum(w for _, w in pairs)
    assert total.minimum[0][slot] == min((x for x, _ in pairs), default=INF)
    assert total.maximum[0][slot] == max((x for x, _ in pairs), default=-INF)
    odd = [value for value, _, _ in counts if not math.isfinite(value)]
    assert total.nan[slot] == sum(map(math.isnan, odd))
    assert (total.positive[slot], total.negative[slot]) == (odd.count(INF), odd.count(-INF))
    places_of_odd = [place for value, _, place in counts if not math.isfinite(value)]
    assert total.first_nonfinite[slot] == min(
        places_of_odd, default=int(total.first_nonfinite.dtype.type(NEVER & np.iinfo(total.first_nonfinite.dtype).max))
    )


@each_library
@pytest.mark.parametrize("rows", [1, 7])
def test_folding_is_merging_row_by_row(library: Library, rows: int) -> None:
    values = np.random.default_rng(rows).normal(1e3, 1e3, (rows, SLOTS)).astype(np.float32)
    sums = library.call(lifting(ALL), values, library.place([[1]]))
    total = folded(library, sums)
    for slot in range(SLOTS):
        assert number(total.total, slot) == sum(fractions(values[:, slot]))
        assert number(total.squares, slot) == sum(x * x for x in fractions(values[:, slot]))
    one_by_one = row(sums, 0)
    for at in range(1, rows):
        one_by_one = merged(library, one_by_one, row(sums, at))
    assert same(normalised(total), normalised(one_by_one))


def test_the_tree_folds_an_odd_row_too() -> None:
    library = LIBRARIES[0]
    sums = library.call(lifting(PLAIN), np.arange(5, dtype=np.float32)[:, None], library.place([[1]]))
    assert number(fold_tree(library.ops, sums).total, 0) == 10


# ---------------------------------------------------------------------- weights and places


@each_library
@pytest.mark.parametrize(
    ("value", "weight", "nan", "positive", "weights"),
    [
        (NAN, 0.0, 0, 0, 0),
        (INF, 0.0, 0, 0, 0),
        (7.0, 0.0, 0, 0, 0),
        (NAN, 2.0, 1, 0, 0),
        (INF, 2.0, 0, 1, 0),
        (7.0, NAN, 1, 0, 0),
        (7.0, INF, 1, 0, 0),
        (INF, NAN, 1, 0, 0),
        (7.0, 2.0, 0, 0, 2),
        (7.0, -2.0, 0, 0, -2),
    ],
)
def test_weight_0_counts_for_nothing_and_a_weight_that_is_not_finite_as_nan(
    library: Library, value: float, weight: float, nan: int, positive: int, weights: int
) -> None:
    cells = (np.full((1, 1), cell, np.float32) for cell in (value, weight))
    sums = row(library.call(lifting(WEIGHTED), next(cells), library.place([[9]]), next(cells)), 0)
    assert (sums.nan[0], sums.positive[0], sums.negative[0]) == (nan, positive, 0)
    assert number(sums.weights, 0) == weights
    assert number(sums.weighted, 0) == weights * Fraction(7)
    assert number(sums.squares, 0) == weights * Fraction(49)
    assert sums.first_nonfinite[0] == (9 if nan or positive else library.ops.never)


@given(st.integers(1, 2**40), st.integers(0, 2**20 - 1), st.integers(1, 2**40), st.integers(0, 2**20 - 1))
def test_place_codes_order_as_updates_and_steps_do(update: int, step: int, other: int, other_step: int) -> None:
    code = encode_position(update, step)
    assert decode_position(code) == (update, step)
    assert (code < encode_position(other, other_step)) == ((update, step) < (other, other_step))
    assert code < NEVER


# ---------------------------------------------------------------------- whole arrays


def lifted(library: Library, values: Any, fields: Fields = ALL, weights: Any = None, code: int = 5) -> Statistics:
    more = () if weights is None else (weights,)
    return library.call(lifting_array(fields), values, library.place([[code]]), *more)


def drawn(size: int) -> np.ndarray[Any, Any]:
    """Return multiples of 1/16 between 750 and 1,250: few bits, so that their sum is exact in every way of summing them."""
    return (np.random.default_rng(size).integers(-4000, 4000, size) / 16 + 1000).astype(np.float32)


def summed(values: Any, weights: Any = 1.0) -> tuple[Fraction, Fraction, Fraction]:
    """Return the exact sums of w, w x and w x^2, for values that `drawn` gave and weights that are multiples of 1/2."""
    x, w = (
        np.broadcast_to(scaled, np.shape(values)).astype(np.int64) for scaled in (values * 16, weights * np.float32(2))
    )
    return Fraction(int(w.sum()), 2), Fraction(int((w * x).sum()), 32), Fraction(int((w * x * x).sum()), 512)


def check_squares(size: int, got: Fraction, values: Any, weights: Any = 1.0) -> None:
    """Check a sum of squares: exact of up to 1,024 elements, and of more so close that their variance is."""
    mass, total, squares = summed(values, weights)
    spread = squares - total**2 / mass if mass else Fraction(0)
    assert abs(got - squares) <= (0 if size <= 1024 else size * spread / 2**53)


def check_ends(sums: Statistics, values: Any) -> None:
    assert sums.minimum[0][0] == min(values, default=INF)
    assert sums.maximum[0][0] == max(values, default=-INF)


SIZES = [0, 1, 1024, 1025, 100_000]


@each_library
@pytest.mark.parametrize("size", SIZES)
def test_an_array_is_lifted_as_its_elements_are(library: Library, size: int) -> None:
    values = drawn(size)
    sums = lifted(library, values)
    assert number(sums.total, 0) == summed(values)[1]
    check_squares(size, number(sums.squares, 0), values)
    check_ends(sums, values)
    assert (sums.nan[0], sums.positive[0], sums.negative[0], sums.first_nonfinite[0]) == (0, 0, 0, library.ops.never)
    assert (sums.weighted, sums.weights) == ((), ())


@each_library
@pytest.mark.parametrize("size", SIZES[1:])
def test_nan_and_infinities_in_an_array_are_counted_and_left_out(library: Library, size: int) -> None:
    values = drawn(size)
    odd = [NAN, INF, -INF, NAN][: min(4, size)]
    values[-len(odd) :] = odd
    sums, finite = lifted(library, values), values[: -len(odd)]
    assert number(sums.total, 0) == summed(finite)[1]
    check_squares(size, number(sums.squares, 0), finite)
    check_ends(sums, finite)
    assert (sums.nan[0], sums.positive[0], sums.negative[0]) == ((2, 1, 1) if size > 1 else (1, 0, 0))
    assert sums.first_nonfinite[0] == 5


@each_library
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_mask", [True, False], ids=["mask", "one weight"])
def test_an_arrays_weights_count(library: Library, size: int, is_mask: bool) -> None:
    values = drawn(size)
    weights = (np.arange(size) % 7 % 4).astype(np.float32) if is_mask else np.array([2.5], np.float32)
    mass, total, _ = summed(values, weights)
    spoilt = np.where(weights == 0, np.float32(NAN), values)
    sums = lifted(library, spoilt, WEIGHTED, weights)
    assert number(sums.weights, 0) == mass
    assert abs(number(sums.weighted, 0) - total) <= (0 if size <= 1024 else size * total / 2**53)
    check_squares(size, number(sums.squares, 0), values, weights)
    check_ends(sums, values[np.broadcast_to(weights != 0, size)])
    assert (sums.nan[0], sums.first_nonfinite[0]) == (0, library.ops.never)


@each_library
@pytest.mark.parametrize("size", [1024, 1025])
@pytest.mark.parametrize("dtype", ["bool", "int32", "int64", "uint64"])
def test_arrays_of_ints_and_bools_are_summed_exactly(library: Library, size: int, dtype: str) -> None:
    info = None if dtype == "bool" else np.iinfo(dtype)
    low, high = (0, 2) if info is None else (int(info.min), int(info.max))
    values = np.random.default_rng(1).integers(low, high, size, dtype=dtype if info else np.int64).astype(dtype)
    sums = lifted(library, values, Fields(extremes=True))
    numbers = [int(value) for value in values]
    assert number(sums.total, 0) == sum(numbers)
    assert (number(sums.minimum, 0), number(sums.maximum, 0)) == (min(numbers), max(numbers))


@each_library
def test_a_large_arrays_sum_is_as_close_as_promised(library: Library) -> None:
    values = np.random.default_rng(0).lognormal(0.0, 4.0, 5000).astype(np.float32)
    values[::2] *= -1
    total, numbers = number(lifted(library, values, PLAIN).total, 0), fractions(values)
    assert abs(total - sum(numbers)) <= len(values) * sum(map(abs, numbers)) / 2**53
