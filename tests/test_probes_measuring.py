"""Arrays are measured to the same bits by any number of threads, which end with the call; to binary64, far from zero too."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noether_core.probes import statistics
from noether_core.probes.fingerprint import fingerprint, flat_values
from noether_core.probes.sharing import share
from noether_core.probes.statistics import measure, measure_all, statistics_of

DRAWN = np.random.default_rng(0)
ARRAYS = [
    DRAWN.standard_normal((33, 71)).astype(np.float32),
    np.zeros((0, 3), np.float32),
    DRAWN.standard_normal(5_003).astype(ml_dtypes.bfloat16),
    DRAWN.standard_normal((7, 900)) + 1e6,
    DRAWN.integers(-(2**63), 2**63, 2_500),
    np.float32(2.5),
    np.where(np.arange(4_000) == 3_500, np.nan, 1.0).astype(np.float32),
    np.full(3_333, 0.1, np.float32),
]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_PIECE", 100)
    monkeypatch.setattr(statistics, "_ROW", 16)
    monkeypatch.setattr(statistics, "_FOR_A_THREAD", 1)


@pytest.mark.usefixtures("small_pieces")
def test_any_number_of_threads_gives_the_same_bits() -> None:
    alone = [measure(array) for array in ARRAYS]
    for threads in (1, 2, 5, 50):
        found = measure_all(ARRAYS, threads)
        assert found.reals.tobytes() == np.stack([each.reals for each in alone]).tobytes()
        assert found.sums.tolist() == [each.sums.tolist() for each in alone]
    assert np.isnan(found.reals[[1, 6]]).all()
    assert np.isfinite(found.reals[[0, 2, 3, 4, 5, 7]]).all()


@pytest.mark.usefixtures("small_pieces")
def test_pieces_come_to_what_the_whole_array_is() -> None:
    for array in ARRAYS:
        if np.size(array) and array is not ARRAYS[6]:
            found, wide = statistics_of(array), np.asarray(array).astype(np.float64)
            wanted = [wide.mean(), wide.std(), np.linalg.norm(wide), wide.min(), wide.max()]
            np.testing.assert_allclose(
                [found.mean, found.std, found.norm, found.min, found.max], wanted, rtol=1e-12, atol=1e-9
            )
            assert found.fingerprint == fingerprint(array)


def test_no_arrays_are_measured_as_none() -> None:
    found = measure_all([], threads=2)
    assert (found.reals.shape, found.sums.shape) == ((0, 5), (0, 2))


@given(
    st.sampled_from([0.0, 0.5, 3.0, 5.0, 100.0, 1e6]),
    st.sampled_from([1e-30, 1.0, 1e12]),
    st.integers(2, 400),
    st.integers(0, 2**32 - 1),
)
def test_the_spread_is_exact_however_far_from_zero_values_are(off: float, size: float, count: int, seed: int) -> None:
    array = size * (np.random.default_rng(seed).standard_normal(count) + off)
    found = statistics_of(array)
    exact = [Fraction(value) for value in array.tolist()]
    mean = sum(exact) / count
    std = math.sqrt(sum((value - mean) ** 2 for value in exact) / count)
    assert found.std == pytest.approx(std, rel=1e-13 + 1e-16 * off)
    assert found.norm == pytest.approx(math.sqrt(sum(value**2 for value in exact)), rel=1e-14)
    assert found.mean == pytest.approx(float(mean), rel=1e-12, abs=1e-15 * size)


LAID_OUT: dict[str, tuple[Any, bool]] = {
    "as C has it": (np.arange(24).reshape(2, 3, 4), True),
    "as Fortran has it": (np.asfortranarray(np.arange(24).reshape(2, 3, 4)), True),
    "channels last": (np.arange(120).reshape(2, 3, 4, 5).transpose(0, 3, 1, 2), True),
    "backwards": (np.arange(24).reshape(4, 6)[::-1], False),
    "with gaps": (np.arange(28).reshape(4, 7)[:, ::2], False),
    "broadcast": (np.broadcast_to(np.arange(3), (4, 3)), False),
}


@pytest.mark.parametrize("name", LAID_OUT)
def test_memory_without_gaps_is_read_where_it_lies(name: str) -> None:
    array, is_view = LAID_OUT[name]
    flat = flat_values(array)
    assert np.shares_memory(flat, array) == is_view
    assert sorted(flat.tolist()) == sorted(array.ravel().tolist())


# ---------------------------------------------------------------------- threads


def test_each_task_goes_to_one_of_the_threads() -> None:
    met = threading.Barrier(3, timeout=30)
    calls: list[list[int]] = []

    def work(tasks: Iterator[int]) -> None:
        first = next(tasks)
        met.wait()  # until three have one
        calls.append([first, *tasks])

    share(range(100), work, threads=3)
    assert len(calls) == 3
    assert sorted(task for call in calls for task in call) == list(range(100))


def test_one_thread_is_the_callers_own() -> None:
    found: list[tuple[int, int]] = []
    share([1], lambda tasks: found.extend((task, threading.get_ident()) for task in tasks), threads=1)
    share([2], lambda tasks: found.extend((task, threading.get_ident()) for task in tasks), threads=5)
    assert found == [(1, threading.get_ident()), (2, threading.get_ident())]


@pytest.mark.parametrize("is_own", [True, False], ids=["in the caller's thread", "in another"])
def test_what_fails_in_a_thread_is_raised_when_no_thread_works_any_more(is_own: bool) -> None:
    before, done = set(threading.enumerate()), []
    met = threading.Barrier(2, timeout=30)

    def work(tasks: Iterator[int]) -> None:
        first = next(tasks)
        met.wait()
        if (threading.current_thread() in before) == is_own:
            raise ZeroDivisionError(first)
        for task in tasks:
            done.append(task)
            failed.wait(timeout=0.001)

    failed = threading.Event()
    with pytest.raises(ZeroDivisionError):
        share(range(10_000), work, threads=2)
    assert set(threading.enumerate()) <= before
    assert len(done) < 9_000  # the others got no more


def test_without_more_threads_the_caller_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    share(range(5), done.extend, threads=4)
    assert done == list(range(5))


FORKED = """
import os, sys
import numpy as np
from noether_core.probes.statistics import measure_all

arrays = [np.random.default_rng(0).standard_normal(1_000_000).astype(np.float32)]
before = measure_all(arrays, threads=4)
if (child := os.fork()) == 0:
    found = measure_all(arrays, threads=4)
    same = found.reals.tobytes() == before.reals.tobytes() and found.sums.tolist() == before.sums.tolist()
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_measures_as_its_parent_did() -> None:
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-W", "error", "-c", FORKED], timeout=60, env=environment, check=False)
    assert done.returncode == 0
