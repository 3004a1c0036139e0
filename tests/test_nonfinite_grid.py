"""NaN and infinities of every dtype, through every reduction and policy, in both frameworks, held to exact fractions."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.errors import NonFiniteError
from parity_tests.devices import to_framework
from parity_tests.reference import Seen, Tracker, reduced

DTYPES = {
    **{name: np.dtype(name) for name in ("float16", "float32", "float64")},
    **{
        name: np.dtype(getattr(ml_dtypes, name))
        for name in ("bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e4m3fnuz")
    },
    "python float": None,
}
REDUCTIONS = ["mean", "last", "sum", "min", "max", "std", "var", "count", "stack"]
UPDATES, ACCUMULATION_STEPS = 3, 2  # of an interval
FINITE = [0.5, -1.0, 1.0, 2.0, -3.0, 4.0]  # which every dtype has
BAD = [math.nan, math.inf, -math.inf]
FRONT_ENDS = {"jax": noether_jax, "torch": noether_torch}
CASES = [(framework, name) for framework in FRONT_ENDS for name in DTYPES if framework == "jax" or "fnuz" not in name]


def bad_values(dtype: Any) -> list[float]:
    """Return those of the three that a dtype has: of most float8 it is NaN alone."""
    if dtype is None:
        return BAD
    return [bad for bad in BAD if repr(float(np.asarray(bad, dtype))) == repr(bad)]


def drawn(rng: np.random.Generator, dtype: Any, shape: tuple[int, ...], count: int, bads: list[float]) -> list[Any]:
    """Return an interval's values, with some of these at any steps."""
    values = [rng.choice(FINITE, shape) for _ in range(count)]
    for bad in bads:
        values[rng.integers(count)].reshape(-1)[rng.integers(math.prod(shape))] = bad
    return [float(value.reshape(-1)[0]) if dtype is None else np.asarray(value, dtype) for value in values]


def given(front_end: Any, value: Any) -> Any:
    if not isinstance(value, np.ndarray) or (front_end is noether_jax and value.dtype == np.float64):
        return value  # of 64 bits JAX has arrays only where it is told to
    return to_framework(front_end.Run, value)


def told_apart(path: Path) -> set[str]:
    """Read a run's lines as strict JSON; return which of the names that JSON lacks values for are in them."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    found: set[str] = set()
    for line in (path / "metrics" / "1.jsonl").read_text("ascii").splitlines():
        values = json.loads(line, parse_constant=refuse).values()
        found |= {value for value in values if isinstance(value, str)} & {"NaN", "Infinity", "-Infinity"}
    return found


@pytest.mark.sweep(6)
@pytest.mark.parametrize("policy", ["propagate", "skip"])
@pytest.mark.parametrize("shape", [(), (3,)], ids=["numbers", "arrays"])
@pytest.mark.parametrize(("framework", "name"), CASES)
def test_what_is_not_finite_is_logged_and_saved_as_the_policy_says(
    framework: str, name: str, shape: tuple[int, ...], policy: str, tmp_path: Path, sized: Callable[..., Iterator[Any]]
) -> None:
    front_end, dtype = FRONT_ENDS[framework], DTYPES[name]
    shape = () if dtype is None else shape
    rng = np.random.default_rng([len(name), len(shape), len(policy)])
    kinds = bad_values(dtype)
    mixes = [mix for size in (1, 2) for mix in itertools.product(kinds, repeat=size)]
    intervals = [drawn(rng, dtype, shape or (1,), UPDATES, [*mix]) for mix in mixes]
    if shape == () and dtype is not None:
        intervals = [[value.reshape(()) for value in interval] for interval in intervals]
    config = {"every_n_updates": UPDATES, "keys": ["v"], "save_output": True, "nonfinite": policy}
    logs = {"reduce": {"": [each for each in REDUCTIONS if each != "last" or shape == ()]}}
    last = {"reduce": {"": ["last", "count"]}, "id": "last", "log_output": False}  # an array's is only saved
    with front_end.Run(tmp_path, [config | logs, *([config | last] if shape else [])]) as run:
        for value in itertools.chain(*intervals):
            run.step({"v": given(front_end, value)})
    read = read_run(tmp_path)
    assert read.problems == []
    files: dict[Any, dict[str, Any]] = {}
    for file in read.arrays:
        files.setdefault(file.iteration.update, {}).update(file.load())
    for number, values in enumerate(sized(intervals, "intervals")):
        end = UPDATES * (number + 1)
        seen: Seen = [(end - UPDATES + 1 + at, value, None) for at, value in enumerate(values)]
        logged = {key: value for key, value in read.entries[number].items() if "/" in key}
        wanted: dict[str, Any] = {
            "v/nonfinite/U3": sum(int((~np.isfinite(np.asarray(value, np.float64))).sum()) for value in values)
        }
        for reduce in REDUCTIONS:
            result = reduced(Tracker("update", UPDATES, ("v",), (), reduce, True, True, policy), seen, end)
            if result is not None and np.size(result) == 1 and reduce != "stack" and (shape == () or reduce != "last"):
                wanted[f"v/{reduce}/U3"] = result if isinstance(result, int) else result.item()
            saved = files[end].get(f"v/{reduce}")
            assert (saved is None) == (result is None), (reduce, values)
            if result is not None:
                np.testing.assert_array_equal(np.asarray(saved, np.float64), np.asarray(result, np.float64), reduce)
        assert {key: repr(value) for key, value in logged.items()} == {
            key: repr(value) for key, value in wanted.items()
        }, values
    names = {repr(bad): text for bad, text in zip(BAD, ("NaN", "Infinity", "-Infinity"), strict=True)}
    if policy == "propagate" and shape == ():
        assert told_apart(tmp_path) == {"NaN"} | {names[repr(kind)] for kind in kinds}
    else:
        told_apart(tmp_path)


@pytest.mark.sweep(12)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize(("framework", "name"), CASES)
def test_the_first_bad_step_is_located_exactly(
    framework: str, name: str, reduce: str, tmp_path: Path, sized: Callable[..., Iterator[Any]]
) -> None:
    front_end, dtype = FRONT_ENDS[framework], DTYPES[name]
    rng = np.random.default_rng([len(name), len(reduce)])
    steps = UPDATES * ACCUMULATION_STEPS
    config = {"every_n_updates": UPDATES, "keys": ["v"], "nonfinite": "raise", "save_output": True, "reduce": reduce}
    config["log_output"] = reduce not in ("stack", "last")
    cases = [(first, bad) for first in range(steps) for bad in bad_values(dtype)]
    with front_end.Run(tmp_path, [config], accumulation_steps=ACCUMULATION_STEPS) as run:
        for number, (first, bad) in enumerate(sized(cases, "injections")):
            values = drawn(rng, dtype, (3,) if number % 2 else (1,), steps, [])
            for at in (first, *range(first + 1, steps, 2)):  # later ones do not hide the first
                values[at] = bad if dtype is None else np.full_like(values[at], bad)
            with pytest.raises(NonFiniteError) as caught:  # noqa: PT012 -- the last step's is asserted below
                for at, value in enumerate(values):
                    is_last = at == steps - 1
                    run.step({"v": given(front_end, value)})
            assert is_last
            update = number * UPDATES + first // ACCUMULATION_STEPS + 1
            place = f"first at update {update}, accumulation step {first % ACCUMULATION_STEPS}, process 0."
            assert re.search(re.escape(place), str(caught.value)), (place, str(caught.value))
            assert "'v'" in str(caught.value)
    assert read_run(tmp_path).problems == []
    if config["log_output"]:
        told_apart(tmp_path)
