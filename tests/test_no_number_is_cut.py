"""No number is silently cut: a key's kind of number may change in an interval, and the fused way says where it cannot."""

from __future__ import annotations

import math
import random
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hook_cases import each_front_end, logged

import noether_jax
from noether_core import NoetherError, UpdateOutputError, read_run

INTS = [f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)]
FLOATS = ["float16", "bfloat16", "float32", "float64"]


def dtype_of(name: str) -> np.dtype[Any]:
    return np.dtype(getattr(ml_dtypes, name, name))


def draw_number(rng: random.Random, dtype: str) -> Any:
    """Return a number of this dtype, at its ends too, or a Python number; no two cancel."""
    if dtype == "bool":
        return rng.random() < 0.5
    if "int" in dtype:
        ends = np.iinfo(dtype)
        most = int(ends.max)
        value = rng.choice([0, 1, most, most - 1, rng.randint(0, most), rng.randint(0, 100)])
        return value if ends.min == 0 or rng.random() < 0.8 else -min(value, 100)
    return float(np.asarray(rng.choice([0.5, rng.random() * 1000, 3.0, 0.1, 1 / 3]), dtype_of(dtype)))


def draw_value(rng: random.Random, front_end: Any, shape: tuple[int, ...]) -> tuple[Any, list[Any], str, bool]:
    """Return a value, its elements as Python numbers, its dtype, and whether it is rounded to float64."""
    kind = rng.choice(["python", "list", "numpy", "array"])
    if kind == "python" and not shape:
        number: Any = rng.choice([True, False, 7, -3, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**25, 0.1, 0.5])
        name = type(number).__name__
        return number, [number], "float" if name == "int" and number >= 2**64 else name, True
    dtype = rng.choice(["bool", "int64", "float64"] if kind == "list" else ["bool", *INTS, *FLOATS])
    elements = [draw_number(rng, dtype) for _ in range(math.prod(shape))]
    array = np.array(elements, dtype_of(dtype)).reshape(shape)
    if kind == "list" and shape:
        return array.tolist(), elements, dtype, True
    value = front_end.Run.backend.from_numpy(array) if kind == "array" else array if shape else array[()]
    return value, elements, dtype, dtype == "float64"


def exact(number: Any) -> Fraction:
    return Fraction(float(number)) if type(number) is int and number >= 2**64 else Fraction(number)


def rounded(value: Fraction, is_wide: bool) -> float:
    if is_wide:
        return float(value)
    near = np.float32(float(value))  # in two roundings: look whether a neighbour is nearer
    around = [near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))]
    return float(min(around, key=lambda each: abs(Fraction(float(each)) - value)))


@each_front_end
@pytest.mark.sweep(15)
@pytest.mark.parametrize("seed", range(60))
def test_a_key_whose_kind_of_number_changes_loses_nothing(front_end: Any, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    reductions = ["mean", "sum", "min", "max", "count", "last"]
    config = {"every_n_updates": 100, "keys": ["x"], "reduce": reductions, "save_output": True}
    drawn = [draw_value(rng, front_end, rng.choice([(), (), (1,)])) for _ in range(rng.randint(2, 8))]
    with front_end.Run(tmp_path, [config]) as run:
        for value, *_ in drawn:
            run.step({"x": value})
    values = [exact(number) for _, elements, *_ in drawn for number in elements]
    is_wide = any(wide for *_, wide in drawn)
    is_whole = not any("float" in dtype for _, _, dtype, _ in drawn)
    (entry,) = read_run(tmp_path).entries
    found = {name: entry[f"x/{name}/U100"] for name in reductions}
    wanted: dict[str, Any] = {"count": len(values), "mean": rounded(sum(values) / Fraction(len(values)), is_wide)}
    for name, value in (("sum", sum(values)), ("min", min(values)), ("max", max(values))):
        wanted[name] = int(value) if is_whole else rounded(Fraction(value), is_wide)
    newest = drawn[-1][1][-1]
    wanted["last"] = float(newest) if type(newest) is int and newest >= 2**64 else newest
    assert found == wanted
    assert {name: type(value) for name, value in found.items()} == {name: type(value) for name, value in wanted.items()}


@each_front_end
@pytest.mark.sweep(10)
@pytest.mark.parametrize("seed", range(40))
def test_a_stack_of_several_kinds_holds_every_number_or_costs_that_key_alone(
    front_end: Any, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    shape = rng.choice([(), (2,)])
    config = {"every_n_updates": 100, "keys": ["x", "y"], "reduce": {"x": ["stack", "sum"]}, "save_output": True}
    drawn = [draw_value(rng, front_end, shape) for _ in range(rng.randint(2, 5))]
    numbers = [[exact(number) for number in elements] for _, elements, *_ in drawn]
    every = [number for row in numbers for number in row]
    dtypes = {"float64" if dtype == "float" else dtype for _, _, dtype, _ in drawn}
    if any("float" in dtype for dtype in dtypes):
        fits = all(Fraction(float(number)) == number for number in every)
    else:
        fits = min(every) >= 0 or max(every) < 2**63
    run = front_end.Run(tmp_path, [config])
    run.start()
    for value, *_ in drawn:
        run.step({"x": value, "y": 1.0})
    with nullcontext() if fits else pytest.raises(UpdateOutputError, match=r"'x' had the dtypes .* `stack` needs one"):
        run.finish()
    read = read_run(tmp_path)
    assert (read.entries[0]["y/mean/U100"], "x/sum/U100" in read.entries[0]) == (1.0, True)
    arrays = read.arrays[0].load()
    assert set(arrays) == ({"x/stack"} if fits else set()) | {"x/sum", "y"}
    if fits:
        assert [list(map(exact, row.reshape(-1).tolist())) for row in arrays["x/stack"]] == numbers


UNSAVABLE = ["float8_e4m3b11fnuz", "float8_e3m4", "int4", "uint4"]  # which safetensors has no name for


@each_front_end
@pytest.mark.parametrize("dtype", UNSAVABLE)
def test_what_fails_for_one_key_at_the_end_costs_that_key_alone(front_end: Any, dtype: str, tmp_path: Path) -> None:
    config = {"every_n_updates": 2, "keys": ["x", "y"], "reduce": {"x": ["last", "mean"]}, "save_output": True}
    with front_end.Run(tmp_path, [config]) as run:
        for number in range(6):
            value = np.asarray(number % 2, dtype_of(dtype) if number < 4 else np.float32)
            with pytest.raises(NoetherError, match="x/last") if number in (1, 3) else nullcontext():
                run.step({"x": value, "y": float(number)})
        with pytest.raises(NoetherError, match="x/last"), run.evaluate():
            run.step({"x": np.asarray(1, dtype_of(dtype)), "y": 8.0})
    assert logged(tmp_path, "y/mean/U2") == [(2, 0.5), (4, 2.5), (6, 4.5)]
    assert logged(tmp_path, "x/mean/U2") == [(2, 0.5), (4, 0.5), (6, 0.5)]
    assert logged(tmp_path, "eval/y/mean") == [(6, 8.0)]
    found = [sorted(file.load()) for file in read_run(tmp_path).arrays]
    assert sorted(found) == sorted([["x/mean", "y"]] * 3 + [["x/last", "x/mean", "y"]])


# ---------------------------------------------------------------------- fused

EXAMPLES: list[Any] = [
    0, False, 0.0, np.int8(0), np.uint8(0), np.float32(0), np.float64(0), np.bool_(0),
    *(np.zeros((), dtype_of(dtype)) for dtype in ("uint64", "float8_e5m2")),
    *(jnp.zeros((), dtype) for dtype in ("bool", "int8", "uint8", "int32", "uint32", "float16", "bfloat16", "float32")),
]  # fmt: skip
GIVEN: list[Any] = [
    True, False, 0, 1, 2, -1, 127, 128, 255, 256, 300, -129, 2**24 + 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**70),
    10**400, 0.5, 0.7, 0.1, 2.0, 1e-50, 1e300, -0.0, math.nan, math.inf, -math.inf,
    np.float64(0.1), np.int64(300), np.float32(0.5),
    np.uint8(200), np.bool_(True),
]  # fmt: skip


CASES = [(0, [0.5]), (False, [0.7, 2, 1]), (np.int8(0), [300, 0.5]), (np.uint8(0), [-1]), (np.float32(0), [0.1, 1e300])]


@pytest.mark.parametrize("seed", range(len(EXAMPLES) + len(CASES)))
def test_a_fused_number_is_what_it_was_or_is_refused(seed: int, tmp_path: Path) -> None:
    example, cases = CASES[-1 - seed] if seed < len(CASES) else (EXAMPLES[seed - len(CASES)], [])
    config = {"every_n_updates": 1, "keys": ["x"], "reduce": ["sum", "last"]}
    taken: list[Any] = []
    refused: list[Any] = []
    with jax.enable_x64(seed % 2 == 1), noether_jax.Run(tmp_path, [config]) as run:
        tracked = run.init({"x": example})
        for value in [*cases, *random.Random(seed).sample(GIVEN, 10)]:
            try:
                new = run.track(tracked, {"x": value})
            except UpdateOutputError as error:
                refused.append((value, str(error)))
                continue
            tracked = run.step(new)
            taken.append(value)
    assert {value for value, _ in refused} >= set(cases)
    assert all("'x'" in message for _, message in refused)
    wanted = [float(value) if isinstance(value, int) and abs(value) >= 2**64 else value for value in taken]
    for name in ("sum", "last"):
        found = [value for _, value in logged(tmp_path, f"x/{name}/U1")]
        assert list(map(shown, found)) == list(map(shown, wanted))


def shown(number: Any) -> Any:
    return number if math.isfinite(number) else repr(float(number))


@pytest.mark.sweep(10)
@pytest.mark.parametrize("seed", range(30))
def test_fused_numbers_are_those_of_the_hooks_or_refused(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    config = {"every_n_updates": 100, "keys": ["x"], "reduce": ["mean", "sum", "min", "max"]}
    drawn = [rng.choice([rng.choice(EXAMPLES), rng.choice(GIVEN[:10] + GIVEN[20:24])]) for _ in range(6)]
    taken = []
    with noether_jax.Run(tmp_path / "fused", [config]) as run:
        tracked = run.init({"x": drawn[0]})
        for value in drawn:
            try:
                tracked = run.step(run.track(tracked, {"x": value}))
            except UpdateOutputError:
                continue
            taken.append(value)
    with noether_jax.Run(tmp_path / "hooks", [config]) as run:
        for value in taken:  # a Python number has the example's dtype, which holds it
            dtype = getattr(drawn[0], "dtype", None)
            run.step(
                {"x": value if dtype is None or type(value) not in (bool, int, float) else np.asarray(value, dtype)}
            )
    fused, hooks = (read_run(tmp_path / name).entries for name in ("fused", "hooks"))
    assert fused == hooks


def test_a_python_number_that_jax_showed_in_the_example_is_rounded_as_jax_rounds_it(tmp_path: Path) -> None:
    def step(value: jax.Array) -> dict[str, Any]:
        return {"loss": value, "rate": 0.1}

    config = {"every_n_updates": 2, "patterns": [""]}
    with noether_jax.Run(tmp_path / "fused", [config]) as run:
        tracked = run.init(jax.eval_shape(step, jnp.float32(0)))
        for number in range(2):
            tracked = run.step(
                jax.jit(lambda tracked, value: run.track(tracked, step(value)))(tracked, jnp.float32(number))
            )
        with pytest.raises(UpdateOutputError, match="the Python float 1e\\+300, which float32 cannot hold"):
            run.track(tracked, {"loss": 1.0, "rate": 1e300})
    with noether_jax.Run(tmp_path / "hooks", [config]) as run:
        for number in range(2):
            run.step(jax.jit(step)(jnp.float32(number)))
    assert read_run(tmp_path / "fused").entries == read_run(tmp_path / "hooks").entries


def test_arrays_that_the_example_cannot_hold_are_refused(tmp_path: Path) -> None:
    with jax.enable_x64(True), noether_jax.Run(tmp_path, [{"every_n_updates": 1, "keys": ["x"]}]) as run:
        tracked = run.init({"x": jnp.float32(0)})
        for value in (jnp.float64(0.1), np.float64(0.1), [0.1], np.zeros(3, np.float32), jnp.complex64(1), "text"):
            with pytest.raises(UpdateOutputError, match="'x'"):
                run.track(tracked, {"x": value})
        with pytest.raises(UpdateOutputError, match="MaskedArray"):
            run.track(tracked, {"x": np.ma.array(np.float32(1), mask=True)})
        tracked = run.step(run.track(tracked, {"x": jnp.float32(0.5)}))
    assert logged(tmp_path, "x/U1") == [(1, 0.5)]
