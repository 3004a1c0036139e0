"""What is given is taken at the call: whatever the loop does to it afterwards changes nothing, in any way in."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hook_cases import each_front_end

from noether_core import read_run


class Buffer:
    """Hold one thing of one kind, which each step writes into and hands over again."""

    def __init__(self, kind: str, size: int) -> None:
        self.memory = np.zeros(size + 1, np.float64)
        self.numbers: Any = {
            "array": self.memory[:size],
            "view": self.memory[::-1][:size],
            "reversed bytes": np.zeros(size, ">f8"),
            "matrix": np.zeros((1, size)).view(np.matrix) if kind == "matrix" else None,
            "bytearray": np.frombuffer(bytearray(8 * size), np.float64),
            "scalar view": self.memory[:1].reshape(()),
            "list": [0.0] * size,
            "nested list": [[0.0] * size],
            "list of arrays": [self.memory[:size]],
            "tuple of lists": ([0.0] * size,),
        }[kind]
        self._kind = kind

    def write(self, value: float) -> None:
        inner = self.numbers[0] if self._kind in ("nested list", "list of arrays", "tuple of lists") else self.numbers
        if self._kind == "scalar view":
            inner[()] = value
        else:
            inner[:] = [value] * len(inner) if isinstance(inner, list) else value


KINDS = [
    "array", "view", "reversed bytes", "matrix", "bytearray", "scalar view", "list", "nested list", "list of arrays",
    "tuple of lists",
]  # fmt: skip


@each_front_end
@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 3, 40_000])
@pytest.mark.parametrize("seed", range(2))
def test_a_buffer_that_is_written_into_again_is_taken_at_the_call(
    front_end: Any, kind: str, size: int, seed: int, tmp_path: Path
) -> None:
    rng = random.Random(seed)
    size = 1 if kind == "scalar view" else size
    buffer, weight = Buffer(kind, size), Buffer(rng.choice(["array", "list", "scalar view"]), 1)
    outputs: dict[str, Any] = {"deep": {"x": buffer.numbers}, "w": weight.numbers}  # the dicts are used again too
    config = {
        "every_n_updates": 3, "keys": ["deep/x"], "weight": "w", "reduce": ["mean", "sum", "last", "stack"],
        "save_output": True, "log_output": False,
    }  # fmt: skip
    drawn = [(float(rng.randint(-9, 9)), float(rng.randint(1, 4))) for _ in range(6)]
    with front_end.Run(tmp_path, [config, {"kind": "OnlineLossCallback", "every_n_updates": 3}]) as run:
        for value, factor in drawn:
            buffer.write(value)
            weight.write(factor)
            run.step(outputs, losses=buffer.numbers)
            buffer.write(rng.random() * 1e9)
            weight.write(1e9)
            outputs["extra"] = rng.random()
        with run.evaluate():
            for value, factor in drawn[:3]:
                buffer.write(value)
                weight.write(factor)
                run.step([outputs])
                buffer.write(-1e9)
                weight.write(0.0)
    read = read_run(tmp_path)
    shape = np.shape(buffer.numbers)
    for file, steps in zip(
        sorted(read.arrays, key=lambda file: file.iteration.update), (drawn[:3], drawn[3:]), strict=False
    ):
        arrays = file.load()
        mean = sum(value * factor for value, factor in steps) / sum(factor for _, factor in steps)
        assert arrays["deep/x/mean"] == mean
        assert arrays["deep/x/sum"] == size * sum(value for value, _ in steps)
        np.testing.assert_array_equal(arrays["deep/x/last"], np.full(shape, steps[-1][0]))
        np.testing.assert_array_equal(arrays["deep/x/stack"], [np.full(shape, value) for value, _ in steps])
    online = read.series["loss/online/total/U3"]
    assert [point.value for point in online] == [sum(value for value, _ in part) / 3 for part in (drawn[:3], drawn[3:])]


@each_front_end
@pytest.mark.parametrize("seed", range(5))
def test_values_of_ones_own_are_taken_at_the_call(front_end: Any, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    array, tensor, numbers = np.zeros(1), torch.zeros(1), [0.0, [0.0]]
    values: dict[str, Any] = {
        "array": array,
        "tensor": tensor,
        "list": numbers,
        "deep": {"view": array[:1], "text": ["a"]},
    }
    wanted = []
    with front_end.Run(tmp_path, [{"every_n_updates": 1, "keys": ["loss"]}]) as run:
        for _ in range(4):
            number = float(rng.randint(-9, 9))
            array[:], tensor[:], numbers[0], numbers[1][0] = number, number, number, number  # type: ignore[index]
            values["deep"]["text"][0] = str(number)
            run.step({"loss": 0.0})
            run.log(values)
            array[:], tensor[:], numbers[0], numbers[1][0] = 99.0, 99.0, 99.0, 99.0  # type: ignore[index]
            values["deep"]["text"][0] = "changed"
            wanted.append((number, number, [number, [number]], number, [str(number)]))
        entries = [dict(entry) for entry in run.log_writer.log_entries]
    names = ("array", "tensor", "list", "deep/view", "deep/text")
    assert [tuple(entry[name] for name in names) for entry in entries] == wanted
    assert [tuple(entry[name] for name in names) for entry in read_run(tmp_path).entries] == wanted
