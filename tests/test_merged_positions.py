"""What several processes had of an interval, put together: stacks in the order update, step, process, `last` the newest."""

from __future__ import annotations

from functools import reduce
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from noether_core.algebra.position import encode_position
from noether_core.config import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import NoetherError
from noether_core.reduce.accumulate import OutputAccumulator
from noether_core.reduce.finish import Computation
from noether_core.reduce.host import HostBackend
from noether_core.reduce.partial import Newest, Partials, Stack, merge_partials
from noether_core.reduce.state import pack, unpack

CONFIG = TrackAdditionalOutputsCallbackConfig(
    every_n_updates=100,
    patterns=[""],
    reduce=["mean", "last", "sum", "min", "max", "std", "var", "count", "stack"],
    save_output=True,
    log_output=False,
    nonfinite="skip",
)
DTYPES = ["float32", "float64", "float16", ml_dtypes.bfloat16, "int64", "bool"]


def accumulator() -> OutputAccumulator:
    return OutputAccumulator(HostBackend(), CONFIG)


def finished(partials: Partials, update: int) -> dict[str, Any]:
    partials = partials.in_order(tuple(sorted(partials.keys)))
    arrays = Computation(CONFIG).compute(partials, update).arrays()
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


def drawn_steps(rng: np.random.Generator, processes: int) -> list[tuple[int, int, int, dict[str, Any]]]:
    """Return update, step, process and values, in that order; not every process takes every step."""
    kinds = {f"k{at}": (DTYPES[rng.integers(len(DTYPES))], (3,) if rng.random() < 0.5 else ()) for at in range(4)}
    found = []
    for update in range(1, int(rng.integers(2, 5))):
        for step in range(int(rng.integers(1, 4))):
            for process in range(processes):
                if rng.random() < 0.7:
                    keys = [key for key in kinds if rng.random() < 0.8]
                    values = {key: (rng.normal(size=kinds[key][1]) * 1e3).astype(kinds[key][0]) for key in keys}
                    found.append((update, step, process, values))
    return found


def add(to: OutputAccumulator, step: tuple[int, int, int, dict[str, Any]]) -> None:
    update, number, _, values = step
    to.add(tuple(values), tuple(values.values()), update, number)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", range(12))
def test_what_processes_had_is_what_one_would_have_had(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(5):
        processes = int(rng.integers(1, 5))
        steps = drawn_steps(rng, processes)
        whole, parts = accumulator(), [accumulator() for _ in range(processes)]
        for step in steps:
            add(whole, step)
            part = step[2]
            add(parts[part], step)
            if rng.random() < 0.3:  # saved and loaded between two steps
                parts[part] = accumulator_of(unpack(pack(parts[part].partials())))
        merged = reduce(merge_partials, [part.partials() for part in parts])
        update = max([step[0] for step in steps if step[3]], default=1)
        assert finished(merged, update) == finished(whole.partials(), update)


def accumulator_of(partials: Partials) -> OutputAccumulator:
    made = accumulator()
    made.load(partials)
    return made


def test_of_equal_positions_the_first_ones_come_first() -> None:
    def stack(first: int, *positions: int) -> Stack:
        return Stack(tuple(np.asarray(first + at) for at in range(len(positions))), np.array(positions))

    merged = stack(0, 1, 4, 4).merge(stack(10, 1, 2, 4))
    assert [int(value) for value in merged.values] == [0, 10, 11, 1, 2, 12]
    assert merged.positions.tolist() == [1, 1, 2, 4, 4, 4]


def test_last_is_of_the_newest_step_of_an_update_whichever_process_had_it() -> None:
    early, late = accumulator(), accumulator()
    early.add(("x",), (np.float32(1),), 7, 0)
    late.add(("x",), (np.float32(2),), 7, 1)
    for merged in (
        merge_partials(late.partials(), early.partials()),
        merge_partials(early.partials(), late.partials()),
    ):
        assert merged.last["x"] == Newest(np.float32(2), 7, 1)


def test_an_update_of_more_steps_than_a_position_counts_is_still_that_update() -> None:
    only = accumulator()
    only.add(("x",), (np.float32(1),), 7, 2**20 + 5)
    assert finished(only.partials(), 7)["x/last"][2] == np.float32(1).tobytes()


def test_a_state_of_version_1_is_read_and_its_values_come_first() -> None:
    first = accumulator()
    for step in range(2):
        first.add(("a", "b"), (np.float32(step), np.asarray([step, 1], ml_dtypes.bfloat16)), 1, step)
    bits = np.stack([np.asarray([step, 1], ml_dtypes.bfloat16) for step in range(2)]).view(np.uint16)
    old = pack(first.partials()) | {
        "version": 1,
        "last_update": np.array([1, 1]),
        "last": {
            "a": {"dtype": "float32", "values": np.array(1, np.float32)},
            "b": {"dtype": "bfloat16", "values": bits[1]},
        },
        "stack": {
            "a": {"dtype": "float32", "values": np.array([0, 1], np.float32)},
            "b": {"dtype": "bfloat16", "values": bits},
        },
    }
    assert finished(unpack(old), 1) == finished(first.partials(), 1)
    second = accumulator_of(unpack(old))
    second.add(("a", "b"), (np.float32(5), np.asarray([5, 1], ml_dtypes.bfloat16)), 0, 0)
    first.add(("a", "b"), (np.float32(5), np.asarray([5, 1], ml_dtypes.bfloat16)), 1, 2)
    assert [float(value) for value in second.partials().stack["a"].values] == [0, 1, 5]
    assert finished(second.partials(), 2)["b/stack"] == finished(first.partials(), 2)["b/stack"]


def test_stacked_values_of_several_dtypes_stay_as_they_are_in_a_state() -> None:
    mixed = accumulator()
    values = [np.int64(2**53 + 1), np.float64(0.5), np.float64(0.25), np.int64(3)]
    for step, value in enumerate(values):
        mixed.add(("x",), (value,), 1, step)
    stack = unpack(pack(mixed.partials())).stack["x"]
    assert [(value.dtype, value.item()) for value in stack.values] == [(value.dtype, value.item()) for value in values]
    assert stack.positions.tolist() == [encode_position(1, step) for step in range(4)]


@pytest.mark.parametrize("part", ["last", "stack"])
@pytest.mark.parametrize(
    "damage",
    [
        {"keys": [1]},
        {"keys": [-1]},
        {"keys": [0, 0]},
        {"keys": None},
        {"values": []},
        {"values": 3},
        {"values": [{"dtype": "float32", "places": [0, 0], "values": np.zeros(2)}]},
        {"values": [{"dtype": "float32", "places": [0, 1], "values": np.zeros(3)}]},
        {"values": [{"dtype": "floats", "places": [0, 1], "values": np.zeros(2)}]},
        {"positions": [1], "updates": []},
        {"positions": None, "steps": [None]},
        {"lengths": [3], "updates": [1, 2]},
        {"lengths": [0, 2], "keys": [0, 0, 0]},
    ],
)
def test_damaged_values_are_refused(part: str, damage: dict[str, Any]) -> None:
    two = accumulator()
    for step in range(2):
        two.add(("x",), (np.float32(step),), 1, step)
    state = pack(two.partials())
    state[part] |= damage
    with pytest.raises(NoetherError, match=r"incomplete or damaged"):
        unpack(state)
