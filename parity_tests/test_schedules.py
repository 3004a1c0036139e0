"""Generated trainings: every way of running gives the exact reference's numbers, bit for bit."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parity_tests.drawing import KINDS, draw_value, draw_weight, nest
from parity_tests.reference import Outputs, Result, Schedule, Tracker, expected
from parity_tests.ways import FUSED_WAYS, WAYS, can_be_fused

REDUCTIONS = ("mean", "mean", "last", "sum", "min", "max", "std", "var", "count", "stack")
SCALES = ("unit", "offset", "wild", "whole", "nonfinite")
PARTS = 5  # so that processes share the work evenly; the first draw of each is the simplest there is


@st.composite
def trackers(draw: st.DrawFn, keys: tuple[str, ...]) -> Tracker:
    reduce = draw(st.sampled_from(REDUCTIONS))
    exact = draw(st.lists(st.sampled_from(keys), max_size=4, unique=True))
    patterns = draw(st.lists(st.sampled_from(["aux", "loss", "l", "/", "e", ""]), max_size=2, unique=True))
    if not exact and not patterns:
        patterns = [""]
    log = draw(st.booleans()) or reduce not in ("last", "stack")
    if reduce == "last" and log:  # the log takes no field
        fields = {"field", "aux/mask", "time/wide"}
        exact, patterns = [key for key in exact if key not in fields] or ["lr"], []
    return Tracker(
        draw(st.sampled_from(["update", "epoch", "sample"])),
        draw(st.integers(1, 7)),
        tuple(exact),
        tuple(patterns),
        reduce,
        log,
        not log or reduce == "stack" or draw(st.booleans()),
        draw(st.sampled_from(["propagate", "propagate", "skip"])),
        draw(st.sampled_from([None, None, "weight"])) if "weight" in keys else None,
    )


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    keys = tuple(draw(st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=5, unique=True)))
    variant = draw(st.integers(0, 1))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from(SCALES))
    absent = draw(st.sampled_from([0.0, 0.0, 0.2]))
    accumulation_steps = draw(st.integers(1, 3))

    def step() -> Outputs:
        if rng.random() < absent / 2:
            return None
        outputs = {
            key: None if rng.random() < absent / 4 else draw_value(rng, *KINDS[key][variant], scale)
            for key in keys
            if rng.random() >= absent
        }
        if "weight" in keys:
            outputs["weight"] = draw_weight(rng, KINDS["weight"][variant][0], scale)
        return nest(outputs)

    steps = tuple(tuple(step() for _ in range(accumulation_steps)) for _ in range(draw(st.integers(1, 14))))
    chosen = draw(st.lists(trackers(keys), min_size=1, max_size=3))
    # two callbacks that log one key under one name would rightly be refused
    unique = {(tracker.unit, tracker.n, tracker.reduce): tracker for tracker in chosen}
    intervals = {(tracker.unit, tracker.n): tracker for tracker in unique.values()}
    return Schedule(
        steps, accumulation_steps, draw(st.integers(1, 5)), draw(st.integers(1, 9)), tuple(intervals.values())
    )


def assert_same(found: Result, wanted: Result) -> None:
    assert repr(found.entries) == repr(wanted.entries)  # types, order and every digit
    assert found.files.keys() == wanted.files.keys()
    for name, arrays in wanted.files.items():
        assert found.files[name].keys() == arrays.keys(), name
        for key, array in arrays.items():
            other = found.files[name][key]
            assert (other.dtype, other.shape) == (array.dtype, array.shape), (name, key)
            assert other.tobytes() == array.tobytes(), (name, key)


def check(schedule: Schedule, ways: Mapping[str, Callable[[Schedule, Path], Result]]) -> None:
    wanted = expected(schedule)
    for way, run in ways.items():
        with tempfile.TemporaryDirectory() as directory:
            found = run(schedule, Path(directory) / "run")
        try:
            assert_same(found, wanted)
        except AssertionError as error:
            error.add_note(f"way of running: {way}")
            raise


@pytest.mark.parametrize("part", range(PARTS))
@settings(
    max_examples=max(1, int(os.environ.get("PARITY_SCHEDULES", "50")) // PARTS),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(schedule=schedules())
@pytest.mark.filterwarnings("ignore:.*matched no update output.*:UserWarning")
def test_every_way_gives_the_exact_numbers(part: int, schedule: Schedule) -> None:
    check(schedule, WAYS)


@pytest.mark.parametrize("seed", range(int(os.environ.get("PARITY_FUSED", "3"))))
@pytest.mark.filterwarnings("ignore:.*matched no update output.*:UserWarning")
def test_every_fused_way_gives_the_exact_numbers(seed: int) -> None:
    # a compilation each: drawn by a seed, since shrinking would take minutes
    schedule = draw_fusible(np.random.default_rng(seed))
    assert can_be_fused(schedule)
    check(schedule, FUSED_WAYS)


def draw_fusible(rng: np.random.Generator) -> Schedule:
    """Return a schedule whose every step has the same outputs, as a compiled function gives them."""
    narrow = {key: kinds for key, kinds in KINDS.items() if key not in ("lr", "time/wide")}
    keys = [str(key) for key in rng.choice(list(narrow), rng.integers(1, 6), replace=False)]
    variant = int(rng.integers(2)) if "weight" not in keys else 0
    scale, accumulation_steps = str(rng.choice(SCALES)), int(rng.integers(1, 4))

    def step() -> Outputs:
        outputs = {key: draw_value(rng, *narrow[key][variant], scale) for key in keys}
        if "weight" in keys:
            outputs["weight"] = np.asarray(draw_weight(rng, np.float32, scale))
        return nest(outputs)

    trackers = []
    for unit in rng.choice(["update", "epoch", "sample"], rng.integers(1, 4), replace=False):
        reduce = str(rng.choice(["mean", "last", "sum", "min", "max", "std", "var", "count"]))
        weight = "weight" if "weight" in keys and rng.random() < 0.5 else None
        log = reduce != "last"
        trackers.append(
            Tracker(str(unit), int(rng.integers(1, 8)), (keys[0],), ("",), reduce, log, not log, "propagate", weight)
        )
    steps = tuple(tuple(step() for _ in range(accumulation_steps)) for _ in range(rng.integers(1, 15)))
    return Schedule(steps, accumulation_steps, int(rng.integers(1, 6)), int(rng.integers(1, 10)), tuple(trackers))
