"""A capsule has the newest values of each key, whatever they are, in bounded memory and a small file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from capsule_cases import ended, rows, steps, the_capsule
from hook_cases import NAN, array, each_front_end, every

import noether_torch
from noether_core import NoetherError
from noether_core.emit.capsule import MOST_BYTES
from noether_core.flight_recorder import STEPS

# ------------------------------------------------------------------ which values

SHAPES: dict[str, tuple[int, ...]] = {
    "s": (),
    "one": (1,),
    "few": (2, 3),
    "some": (40,),
    "many": (50, 50),
    "none": (0,),
}


def expected(value: np.ndarray[Any, Any], is_few_given: bool) -> Any:
    numbers = value.astype(np.float64).reshape(-1) if value.dtype.kind == "f" else value.reshape(-1)
    if numbers.size == 1:
        return numbers[0].item()
    if 0 < numbers.size <= 16 and is_few_given:
        return numbers.tolist()
    finite = numbers[np.isfinite(numbers)].astype(np.float64)
    found: dict[str, Any] = {"elements": numbers.size}
    if finite.size:
        found |= {"min": finite.min(), "max": finite.max(), "mean": pytest.approx(finite.mean(), rel=1e-12, abs=1e-300)}
    odd = {"nan": np.isnan(numbers), "inf": numbers == np.inf, "-inf": numbers == -np.inf}
    return {**found, **{name: int(where.sum()) for name, where in odd.items() if where.any()}}


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(same, found, wanted))
    return found == wanted or (found != found and wanted != wanted)


@each_front_end
@pytest.mark.parametrize("seed", range(100))
@pytest.mark.sweep(2)
def test_they_are_the_last_ones_whatever_comes(front_end: Any, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    draw = np.random.default_rng(seed)
    kinds = {name: rng.choice(["float32", "float16", "int32", "float64"]) for name in SHAPES}
    often = {name: rng.choice([0.3, 1.0]) for name in SHAPES}
    most, history = rng.choice([1, 2, 7, 32, 100]), {name: [] for name in SHAPES}
    configs = [
        every(rng.choice([1, 3, 50]), keys=["s", "few", "many"], missing="skip", reduce=["mean", "min", "max"]),
        every(rng.choice([1, 4, 50]), patterns=["o"], missing="skip", reduce=["mean", "std", "min", "max"]),
    ]
    run = front_end.Run(tmp_path, configs, flight_recorder=most, accumulation_steps=rng.choice([1, 2]))

    def body(run: Any) -> None:
        for _ in range(rng.randrange(1, 130)):
            outputs = {}
            for name, shape in SHAPES.items():
                if rng.random() < often[name]:
                    value = draw.integers(-50, 50, shape).astype(kinds[name])
                    if "float" in kinds[name] and value.size and rng.random() < 0.2:
                        value.reshape(-1)[: rng.randrange(1, value.size + 1)] = rng.choice([np.nan, np.inf, -np.inf])
                    outputs[name] = value
                    history[name].append(((run.counter.update + 1, run.accumulated), value))
            run.step({name: array(front_end, value, value.dtype) for name, value in outputs.items()})

    ended(run, RuntimeError("gone"), body)
    found = rows(the_capsule(tmp_path))
    assert found.keys() == {name for name, of_name in history.items() if of_name}
    is_few_given = front_end is noether_torch
    for name, of_name in history.items():
        assert [step for step, _ in found.get(name, [])] == [step for step, _ in of_name[-most:]]
        for (_, value), (_, wanted) in zip(found.get(name, []), of_name[-most:], strict=True):
            assert same(value, expected(wanted, is_few_given)), name


@each_front_end
def test_a_step_that_another_callback_refused_is_not_among_them(front_end: Any, tmp_path: Path) -> None:
    def body(run: Any) -> None:
        run.step({"loss": 1.0, "x": 1.0})
        with pytest.raises(NoetherError):
            run.step({"loss": 2.0})
        run.step({"loss": 3.0, "x": 3.0})

    ended(front_end.Run(tmp_path, [every(9), every(9, keys=["x"])]), RuntimeError("gone"), body)
    assert rows(the_capsule(tmp_path))["loss"] == [((1, 0), 1.0), ((2, 0), 3.0)]


@each_front_end
def test_after_a_restart_they_are_those_since(front_end: Any, tmp_path: Path) -> None:
    def body(run: Any) -> None:
        steps(front_end, 5)(run)
        state = run.state_dict()
        steps(front_end, 15)(run)
        run.load_state_dict(state)
        run.step({"loss": 100.0})

    ended(front_end.Run(tmp_path, [every(50)]), RuntimeError("gone"), body)
    assert rows(the_capsule(tmp_path))["loss"] == [((6, 0), 100.0)]


def test_of_a_key_that_two_callbacks_track_there_is_one_row(tmp_path: Path) -> None:
    run = noether_torch.Run(tmp_path, [every(2), every(5, reduce=["sum"])])
    ended(run, RuntimeError("gone"), steps(noether_torch, 3))
    assert [each.key for each in the_capsule(tmp_path).values] == ["loss"]


# ------------------------------------------------------------------ bounds


@each_front_end
def test_many_keys_and_large_arrays_make_a_small_file(front_end: Any, tmp_path: Path) -> None:
    names = [f"{'long/' * 100}{number}" for number in range(12_000)]
    outputs: dict[str, Any] = dict.fromkeys(names, 0.123456789012345)
    outputs |= {f"field{number}": array(front_end, np.full(300_000, number)) for number in range(8)}
    outputs["bad"] = array(front_end, NAN)
    outputs["😀" * 9000] = 1.0

    def body(run: Any) -> None:
        for _ in range(6):
            run.step(outputs)

    ended(front_end.Run(tmp_path, [every(90, patterns=["l", "b", "😀"])]), RuntimeError("gone"), body)
    capsule = the_capsule(tmp_path)
    assert capsule.path.stat().st_size <= MOST_BYTES
    assert capsule.values[0].key == "bad"
    assert capsule.left_out > 0
    assert len(capsule.values) + capsule.left_out == len(outputs)
    assert len(capsule.values) > 7_000


@each_front_end
def test_what_is_kept_does_not_grow(front_end: Any, tmp_path: Path) -> None:
    shapes = {"loss": (), "small": (1000,), "large": (5000,)}
    with front_end.Run(tmp_path, [every(7, keys=list(shapes))]) as run:
        recent = run.callbacks[0].sources[0]._recent
        for number in range(400):
            run.step({key: array(front_end, np.full(shape, number)) for key, shape in shapes.items()})
            assert len(recent._kept) <= 2
            assert all(sum(map(len, kept)) <= STEPS + 7 for _, kept in recent._kept.values())


def test_steps_of_very_many_values_are_fewer(tmp_path: Path) -> None:
    outputs = {f"a{number}": array(noether_torch, np.full(1000, number)) for number in range(100)}

    def body(run: Any) -> None:
        for _ in range(30):
            run.step(outputs)
        ((_, kept),) = run.callbacks[0].sources[0]._recent._kept.values()
        assert sum(map(len, kept)) <= 4  # 100,000 values each

    ended(noether_torch.Run(tmp_path, [every(3, patterns=["a"])]), RuntimeError("gone"), body)
    assert 2 <= len(the_capsule(tmp_path).values[0].values) <= 4
