"""State the laws of thinning and packing, and what they come to: a page of long runs is small."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from report_cases import make_runs
from report_pages import unpack

from noether_core import read_run
from noether_core.emit.columns import Series, Table
from noether_core.report.curves import Clocks, charts
from noether_core.report.packing import narrow, packed, script_json, smallest
from noether_core.thinning import kept_rows, knots, pooled

floats = st.floats(allow_nan=True, allow_infinity=True)


@given(hnp.arrays(np.float64, st.integers(1, 300), elements=floats), st.integers(4, 50))
def test_thinning_keeps_extremes_ends_and_what_is_not_finite(values: np.ndarray[Any, Any], most: int) -> None:
    rows = kept_rows(values, most)
    assert list(rows) == sorted(set(rows.tolist()))
    assert {0, len(values) - 1} <= set(rows.tolist())
    assert len(rows) <= max(most, 3 * (most // 2) + 2)
    known = values[np.isfinite(values)]
    kept = values[rows][np.isfinite(values[rows])]
    if len(known):
        assert (kept.min(), kept.max()) == (known.min(), known.max())
    if len(known) < len(values):
        assert len(kept) < len(rows)
    if len(values) > most:
        edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
        for start, end in pairwise(edges):
            part, inside = values[start:end], values[rows[(rows >= start) & (rows < end)]]
            assert np.nanmax(np.where(np.isfinite(part), part, -np.inf)) == np.nanmax(
                np.where(np.isfinite(inside), inside, -np.inf)
            )


@given(hnp.arrays(np.int64, st.integers(1, 60), elements=st.integers(0, 2**40)))
def test_between_knots_every_value_is_interpolated(values: np.ndarray[Any, Any]) -> None:
    wide = np.sort(values).astype(np.float64)
    places = knots(wide)
    np.testing.assert_allclose(np.interp(np.arange(len(wide)), places, wide[places]), wide, rtol=1e-12)


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.floats(-1e6, 1e6)),
    st.integers(4, 60),
)
def test_pooling_keeps_the_largest_magnitude(values: np.ndarray[Any, Any], most: int) -> None:
    cells = pooled(values, most)
    assert cells.size <= most
    assert np.abs(cells).max() == np.abs(values).max()
    assert np.isin(cells, values).all()


def test_pooling_keeps_nan() -> None:
    values = np.zeros((100, 100))
    values[37, 73] = np.nan
    assert np.isnan(pooled(values, 64)).sum() == 1


@given(hnp.arrays(np.float64, st.integers(1, 20), elements=floats))
def test_narrowed_values_look_the_same(values: np.ndarray[Any, Any]) -> None:
    short = narrow(values).astype(np.float64)
    np.testing.assert_array_equal(np.isnan(short), np.isnan(values))
    np.testing.assert_array_equal(np.isinf(short), np.isinf(values))
    known = np.isfinite(values)
    np.testing.assert_allclose(short[known], values[known], rtol=1e-7)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1))
def test_packed_arrays_come_back(values: list[int]) -> None:
    assert unpack(packed(smallest(np.array(values)))).tolist() == values


@given(st.text(st.characters()))
def test_any_text_is_safe_in_a_script_and_comes_back(text: str) -> None:
    written = script_json({text: text})
    assert not set("<>&\u2028\u2029") & set(written)
    assert json.loads(written) == {text: text}


# ------------------------------------------------------------------ the size of a page


def test_keys_that_are_logged_together_share_a_clock(tmp_path: Path) -> None:
    run = read_run(make_runs(tmp_path)[0])
    clocks = Clocks()
    assert {clocks.place_of(series, 0.0) for series in run.series.values()} == {0}


@dataclass
class Long:
    series: dict[str, Series]
    run: LongRun


@dataclass
class LongRun:
    table: Table


def test_twenty_long_runs_make_a_page_below_fifteen_megabytes() -> None:
    """Draw 20 runs × 50 keys × 10,000 updates, of one held in memory; `docs/report.md` has the time with 20 on disk."""
    random = np.random.default_rng(0)
    update = np.arange(1, 10_001)
    time_of = update * 0.1 + random.random(10_000)
    table = [
        Series(f"k{key}", update // 100, update, update * 64, time_of, random.standard_normal(10_000))
        for key in range(50)
    ]
    held = LongRun(Table({}, {}, np.empty((0, 3)), time_of, (), update))
    run = Long({series.key: series for series in table}, held)
    began = time.process_time()
    assert len(script_json(charts([run] * 20))) < 13e6  # type: ignore[list-item]
    assert time.process_time() - began < 7
