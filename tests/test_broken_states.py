"""A state that is refused leaves a run as it was, says what is wrong, and raises no other error; whatever it is."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import noether_jax
import noether_torch
from noether_core.emit.state_file import write_state
from noether_core.errors import NoetherError
from noether_torch.state import as_json

CONFIGS: list[dict[str, Any]] = [
    {
        "every_n_updates": 5,
        "keys": ["loss", "field", "half"],
        "reduce": {"loss": ["mean", "last", "std", "min"], "field": ["mean", "stack"], "half": ["mean", "last"]},
        "save_output": True,
        "log_output": False,
    },
    {"every_n_updates": 5, "keys": ["loss"], "weight": "weight", "id": "weighted"},
    {"kind": "OnlineLossCallback", "every_n_updates": 5},
    {"kind": "LearningRateCallback", "every_n_updates": 5, "key": "loss"},
    {"kind": "ThroughputCallback", "every_n_updates": 2},
    {"kind": "ProgressCallback", "every_n_updates": 2},
    {"kind": "BestMetricCallback", "every_n_updates": 1, "source_metric_key": "x", "higher_is_better": True},
    {
        "kind": "MetricEarlyStopCallback",
        "every_n_updates": 1,
        "source_metric_key": "x",
        "higher_is_better": True,
        "patience": 9,
    },
]
DEEP: list[Any] = []
for _ in range(10_000):
    DEEP = [DEEP]


class Raising:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError("no array")

    def __int__(self) -> int:
        raise RuntimeError("no int")


GARBAGE: list[Any] = [
    None, True, -1, -2, 0, 3, 2**63, -(2**63), 10**400, 0.5, float("nan"), float("inf"), "", "x", "\ud800", b"x", 1j, (), [],
    {}, [1], [None], ["a"], ["a", "a"], [[1], [2, 3]], {"0": 1}, {"x": {}}, {1: 2}, {"dtype": "O", "values": [1]},
    {"base64": "!", "dtype": "x", "shape": "y"}, set(), object(), Raising(), DEEP, np.array(3), np.array(-1), np.array(np.nan),
    np.zeros(0), np.zeros(3), np.full(3, np.nan), np.zeros((2, 2), "int8"), np.array(["a"]), np.array([None]), np.array([1j]),
    np.array([-1, -1]), np.array([2**63], np.uint64), np.float32(1), np.zeros((3, 4), np.float32), np.datetime64("2020-01-01"),
    torch.zeros(3), torch.zeros(2, dtype=torch.bfloat16), jnp.zeros(2), "9" * 10_000, ["x"] * 1000, range(3), type, lambda: 0,
]  # fmt: skip


def outputs(number: int, array: Any) -> dict[str, Any]:
    half = torch.tensor([number], dtype=torch.bfloat16) if array is torch.tensor else jnp.array([number], jnp.bfloat16)
    return {"loss": array(0.5 * number), "field": array([1.0, number]), "half": half, "weight": array(float(number))}


FRAMEWORKS = {"torch": (noether_torch, torch.tensor), "jax": (noether_jax, jnp.asarray)}


def open_run(path: Path, framework: str, steps: int) -> Any:
    module, array = FRAMEWORKS[framework]
    run = module.Run(path, CONFIGS, accumulation_steps=2, effective_batch_size=4)
    run.start()
    go_on(run, array, range(steps))
    return run


def go_on(run: Any, array: Any, numbers: Any) -> None:
    for number in numbers:
        run.step(outputs(number, array), losses=array(1.0 * number), samples=2, times={"data": 0.5})
        if not run.accumulated:
            run.log({"x": float(number)})


def places(state: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of everything in a state."""
    yield path
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    for name, value in items:
        yield from places(value, (*path, name))


def broken(state: Any, rng: random.Random) -> Any:
    """Return a state with something in it that is wrong."""
    state = copy.deepcopy(state)
    *path, name = rng.choice([place for place in places(state) if place])
    holder = state
    for each in path:
        holder = holder[each]
    kind = rng.randrange(6)
    if kind == 0:
        del holder[name]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice(["", "x", "version", "\ud800"])] = holder.pop(name)
    elif kind == 2 and hasattr(holder[name], "shape"):
        value = np.asarray(holder[name])
        change = rng.randrange(4)
        holder[name] = [
            value[..., :-1] if value.ndim else value[None],
            value[None],
            value.astype(complex),
            -value.astype(float),
        ][change]
    elif kind == 3 and isinstance(holder[name], list) and holder[name]:
        holder[name] = holder[name] * 2
    else:
        holder[name] = rng.choice(GARBAGE)
    return state


def shown(state: Any) -> Any:
    return (
        {name: value for name, value in as_json(state).items() if name != "start"} if isinstance(state, dict) else state
    )


def check_message(error: NoetherError) -> None:
    assert len(str(error)) < 3000
    assert any(word in str(error) for word in ("load", "upgrade")), error


@pytest.mark.filterwarnings("ignore")  # of what a state that is taken lacks
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_a_state_is_taken_whole_or_refused_with_nothing_changed(framework: str, full: bool, tmp_path: Path) -> None:
    rng = random.Random()
    run = open_run(tmp_path / "run", framework, 7)
    state = run.state_dict()
    go_on(run, FRAMEWORKS[framework][1], range(7, 9))
    before, refused = shown(run.state_dict()), 0
    for number in range(3000 if full else 250):
        wrong = broken(state, rng)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # NumPy's, of a number that does not fit
                run.load_state_dict(wrong)
        except NoetherError as error:
            refused += 1
            check_message(error)
            assert repr(shown(run.state_dict())) == repr(before)
        else:  # what was changed does not count, or is as good
            if number % 5 == 0:
                go_on_until_the_end(wrong, framework, tmp_path / f"{number}")
            run.load_state_dict(state)
            go_on(run, FRAMEWORKS[framework][1], range(7, 9))
            before = shown(run.state_dict())
    assert refused > 100
    run.finish()


def go_on_until_the_end(state: Any, framework: str, path: Path) -> None:
    """Check that a state that is taken raises nothing raw later on."""
    run = open_run(path, framework, 1)
    run.load_state_dict(state)
    try:
        go_on(run, FRAMEWORKS[framework][1], range(20))
        run.finish()
    except NoetherError:
        run.log_writer.close()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("number", range(8))
def test_a_callback_refuses_garbage_and_stays_as_it_was(number: int, framework: str, tmp_path: Path) -> None:
    run = open_run(tmp_path, framework, 7)
    callback, rng = run.callbacks[number], random.Random(number)
    state = callback.state_dict()
    before = repr(as_json(state))
    for wrong in [*GARBAGE, *(broken(state, rng) for _ in range(60))]:
        try:
            callback.load_state_dict(wrong)
        except NoetherError as error:
            check_message(error)
            assert repr(as_json(callback.state_dict())) == before
        else:
            callback.load_state_dict(state)
    run.finish()


@pytest.mark.parametrize("framework", FRAMEWORKS)
@pytest.mark.parametrize("wrong", GARBAGE, ids=lambda value: type(value).__name__)
def test_a_run_refuses_garbage(wrong: Any, framework: str, tmp_path: Path) -> None:
    run = open_run(tmp_path, framework, 1)
    with pytest.raises(NoetherError, match=r"expected|damaged|callbacks"):
        run.load_state_dict(wrong)
    run.finish()


def test_a_broken_state_in_a_file_changes_nothing(tmp_path: Path) -> None:
    run, rng = open_run(tmp_path / "run", "torch", 7), random.Random(0)
    state, path = run.state_dict(), tmp_path / "state"
    before = repr(shown(state))
    for _ in range(100):
        try:
            write_state(path, broken(state, rng))
        except NoetherError:
            continue
        try:
            run.load_state(path)
        except NoetherError:
            assert repr(shown(run.state_dict())) == before
        else:
            run.load_state_dict(state)
    run.finish()
