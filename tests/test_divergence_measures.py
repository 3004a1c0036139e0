"""Distances, statistics, the order of rows and the shapes of differences, against what NumPy says of the same arrays."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from noether_core.parity.divergence import MemoryTraining
from noether_core.parity.divergence.distance import (
    CHUNK,
    bounds,
    distances_of_rows,
    measure,
    median_ulps,
    same_multiset,
)
from noether_core.parity.divergence.first import DECAY, ERRORS
from noether_core.parity.divergence.rows import RowOrder, row_order
from noether_core.parity.divergence.samples import Samples
from noether_core.parity.divergence.shape import shape_of

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    wide_a, wide_b = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(np.linalg.norm(wide_a - wide_b) / max(np.linalg.norm(wide_a), np.linalg.norm(wide_b)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32, np.int8, np.bool_])
@pytest.mark.parametrize("size", [1, 7, CHUNK, CHUNK + 1, 3 * CHUNK - 5])
def test_the_distance_is_numpys(dtype: type, size: int) -> None:
    generator = np.random.default_rng(size)
    a, b = ((5 * generator.standard_normal(size)).astype(dtype) for _ in range(2))
    a[0], b[0] = 1, 0
    found = measure(a, b)
    assert found.distance == pytest.approx(relative(a, b), rel=1e-12)
    assert found.norm_a == pytest.approx(float(np.linalg.norm(a.astype(np.float64))), rel=1e-12)
    assert found.size == size


@given(arrays(np.float32, 6, elements=FINITE), arrays(np.float32, 6, elements=FINITE))
@settings(max_examples=200, deadline=None)
def test_the_distance_is_symmetric_and_at_most_two(a: np.ndarray, b: np.ndarray) -> None:
    one, other = measure(a, b), measure(b, a)
    assert one.distance == other.distance
    assert 0 <= one.distance <= 2 + 1e-12
    assert measure(a, a).distance == 0


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([np.nan, 1], [np.nan, 1], 0.0),
        ([np.nan, 1], [2, 1], np.inf),
        ([np.inf, 1], [np.inf, 1], 0.0),
        ([np.inf, 1], [-np.inf, 1], np.inf),
        ([np.inf, 2], [np.inf, 1], 0.5),
        ([0, 0], [0, 0], 0.0),
        ([0, 0], [0, 3], 1.0),
        ([1, -1], [-1, 1], 2.0),
        ([0], [1e-45], 0.0),  # the float next to zero
        ([1e-30], [1.1e-30], 1 / 11),
        ([1e300], [1.1e300], 1 / 11),
    ],
)
def test_edges_of_the_distance(a: list[float], b: list[float], expected: float) -> None:
    assert measure(np.array(a), np.array(b)).distance == pytest.approx(expected, rel=1e-6)


def test_only_shapes_without_their_ones_must_agree() -> None:
    assert measure(np.ones((3, 1)), np.ones(3)).distance == 0
    assert measure(np.ones((3, 2)), np.ones((2, 3))).distance == np.inf


def test_ulps_count_floats_between_across_zero() -> None:
    tiny = np.float32(1e-45)
    assert median_ulps(np.array([-tiny]), np.array([tiny])) == 2
    assert median_ulps(np.float32([1.0]), np.nextafter(np.float32([1.0]), np.float32(0))) == 1
    assert median_ulps(np.zeros(0), np.zeros(0)) is None


def statistics_of(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    training = MemoryTraining("", "", {n: {"grad/w": array} for n, array in enumerate(arrays)})
    found = [training.statistics(n, "grad/w") for n in range(len(arrays))]
    return {
        name: np.array([getattr(each, name) for each in found])
        for name in ("count", "mean", "std", "norm", "min", "max")
    }


@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-7, 1e-3, 1.0]))
@settings(max_examples=50, deadline=None)
def test_statistics_bound_the_distance_from_below(seed: int, scale: float) -> None:
    generator = np.random.default_rng(seed)
    first = [generator.standard_normal(20) for _ in range(4)]
    second = [each + scale * generator.standard_normal(20) for each in first]
    lower = bounds(statistics_of(first), statistics_of(second))
    exact = [measure(a, b).distance for a, b in zip(first, second, strict=True)]
    assert (lower <= np.array(exact) * (1 + 1e-6) + 1e-12).all()
    assert (lower > 0).all()


def test_equal_fingerprints_say_that_nothing_differs_and_counts_that_something_does() -> None:
    columns = statistics_of([np.arange(4.0), np.arange(4.0), np.arange(4.0)])
    other = statistics_of([np.arange(4.0) * 2, np.arange(4.0) * 2, np.arange(5.0)])
    marks = {"fingerprint": np.array(["ab", "ab", "cd"])}
    found = bounds({**columns, **marks}, {**other, "fingerprint": np.array(["ab", "cd", "ef"])})
    assert found[0] == 0
    assert found[1] == pytest.approx(0.5)
    assert found[2] == np.inf


def test_rows_have_distances_of_their_own() -> None:
    a = np.arange(12.0).reshape(4, 3)
    b = a.copy()
    b[2, 1] += 1
    assert np.flatnonzero(distances_of_rows(a, b)).tolist() == [2]


@given(st.permutations(range(6)))
def test_rows_in_another_order_are_found_and_activations_follow(order: list[int]) -> None:
    generator = np.random.default_rng(0)
    x, y, act = generator.standard_normal((6, 2)), np.arange(6) % 2, generator.standard_normal((18, 3))
    a = MemoryTraining("a", "", {1: {"data/x": x, "data/y": y, "act/flat": act}})
    shuffled = act.reshape(6, 3, 3)[order].reshape(18, 3)
    b = MemoryTraining("b", "", {1: {"data/x": x[order], "data/y": y[order], "act/flat": shuffled}})
    found = row_order(a, b, 1)
    assert (found is None) == (order == list(range(6)))
    if found is not None:
        assert np.array_equal(found.of_second(shuffled), act)
        assert np.array_equal(found.of_second(np.arange(5)), np.arange(5))


def test_rows_that_lost_their_labels_are_no_order() -> None:
    x, y = np.eye(4), np.arange(4)
    a = MemoryTraining("a", "", {1: {"data/x": x, "data/y": y}})
    b = MemoryTraining("b", "", {1: {"data/x": x[::-1], "data/y": y}})
    assert row_order(a, b, 1) is None
    assert RowOrder(np.array([1, 0])).of_second(np.float32(3)) == 3


def test_a_multiset_has_no_order() -> None:
    values = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    assert same_multiset(values, values.T)
    assert not same_multiset(values, values * 1.001)


VALUES = np.random.default_rng(1).standard_normal((6, 4, 3, 5)).astype(np.float32)
MATRIX = VALUES[:, :, 0, 0]
ONE_ROW = MATRIX + np.float32(np.arange(6)[:, None] == 2)
SOME_ROWS = MATRIX + np.float32(np.isin(np.arange(6), (1, 2))[:, None])
WITH_NAN = np.where(np.arange(24).reshape(6, 4) == 5, np.nan, MATRIX)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (MATRIX, MATRIX * np.float32(0.5), "B is 0.5 × A"),
        (MATRIX, MATRIX * np.float32(1.00001), "B is 1.00001 × A"),
        (MATRIX, -MATRIX, "B is A with the other sign"),
        (MATRIX, MATRIX + np.float32(0.25), "B is A + 0.25"),
        (MATRIX, MATRIX - np.float32(0.25), "B is A − 0.25"),
        (MATRIX, np.zeros_like(MATRIX), "B is all zeros"),
        (np.ones_like(MATRIX), MATRIX, "every element of A is 1"),
        (MATRIX[:4], MATRIX[:4].T, "B is A with its axes in the order 1, 0"),
        (MATRIX, MATRIX.T, "B is A with its axes in the order 1, 0"),
        (VALUES, VALUES[:, :, ::-1, ::-1], "B is A with axes 2, 3 reversed"),
        (VALUES, VALUES[..., ::-1], "B is A with axis 3 reversed"),
        (VALUES, VALUES.transpose(2, 3, 1, 0), "B is A with its axes in the order 2, 3, 1, 0"),
        (MATRIX, MATRIX[[3, 0, 1, 5, 2, 4]], "A and B hold the same values in another order"),
        (MATRIX, ONE_ROW, "only place 2 of 6 along the first axis differs"),
        (MATRIX, SOME_ROWS, "only places 1 to 2 of 6 along the first axis differ"),
        (MATRIX, WITH_NAN, "0 elements of A and 1 of B are NaN or infinite"),
        (MATRIX, MATRIX[:5], "A has shape (6, 4), B (5, 4)"),
        (
            VALUES,
            VALUES.astype(ml_dtypes.bfloat16).astype(np.float32),
            "all values of B are bfloat16's: their low 16 bits are zero",
        ),
        (
            VALUES.astype(np.float16).astype(np.float32),
            VALUES,
            "all values of A are float16's or TF32's: their low 13 bits are zero",
        ),
        (MATRIX, np.random.default_rng(2).standard_normal((6, 4)), ""),
    ],
)
def test_a_difference_is_put_into_words(a: np.ndarray, b: np.ndarray, words: str) -> None:
    assert shape_of(a, b) == words


@pytest.mark.parametrize("decay", [0.0, 1e-5])
@pytest.mark.parametrize("begun", ["at zero", "large"])
def test_a_factor_of_updates_is_no_decay_though_a_parameter_is_the_sum_of_its_updates(begun: str, decay: float) -> None:
    """A bias under Adam that began at zero points where its updates do; weights do not, and show a decay among factors."""
    drawn = np.random.default_rng(0)
    sign = np.sign(drawn.standard_normal(64))
    updates = [3e-3 * sign * (1 + 0.1 * drawn.standard_normal(64)) for _ in range(3)]
    parameter = (sum(updates[:2]) if begun == "at zero" else 0.2 * drawn.standard_normal(64)).astype(np.float32)
    first = updates[2].astype(np.float32)
    second = (first * (1 + 1e-5) + decay * parameter).astype(np.float32)
    samples = Samples()
    for key, a, b in (("param/x", parameter, parameter), ("update/x", first, second)):
        samples.take(key, a, b, measure(a, b))
    slope = samples.drift().decays["update/x"]
    if decay and begun == "large":
        assert slope.value == pytest.approx(decay, rel=0.01)
        assert slope.value > ERRORS * slope.error
    elif not decay:
        assert abs(slope.value) < max(DECAY, ERRORS * slope.error)
