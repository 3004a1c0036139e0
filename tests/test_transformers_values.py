"""What `record` is given is taken at the call, and what is no good is refused there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainer_cases import CONFIGS, Counting, counting, numbers

from noether_core import UpdateOutputError, read_run
from noether_torch.transformers import TrackOutputs, record

EVERY = {"every_n_updates": 1, "keys": ["v"]}

pytestmark = pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")


def points(path: Path, key: str) -> list[tuple[int, Any]]:
    series = read_run(path).series
    return list(zip(series[key].update.tolist(), series[key].value.tolist(), strict=True)) if key in series else []


def as_kept(value: float, kind: str, kept: dict[str, Any]) -> Any:
    """Return a buffer of that kind that holds the value now, the same object at each call."""
    if kind not in kept:
        kept[kind] = {
            "array": np.zeros(3, np.float32),
            "scalar array": np.zeros((), np.float64),
            "view": np.zeros((2, 3))[1],
            "tensor": torch.zeros(3),
            "parameter": torch.nn.Parameter(torch.zeros(3)),
            "list": [0.0, 0.0],
            "nested list": [[0.0], [0.0]],
            "list of arrays": [np.zeros(2), np.zeros(2)],
        }[kind]
    buffer = kept[kind]
    if isinstance(buffer, torch.Tensor):
        buffer.data.fill_(value)
    elif isinstance(buffer, np.ndarray):
        buffer[...] = value
    else:
        for at, inner in enumerate(buffer):
            if isinstance(inner, float):
                buffer[at] = value
            else:
                inner[:] = [value] * len(inner)
    return buffer


KINDS = ["array", "scalar array", "view", "tensor", "parameter", "list", "nested list", "list of arrays"]


@pytest.mark.sweep(5)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["flat", "nested", "losses"])
def test_a_buffer_that_is_used_again_is_taken_at_the_call(kind: str, place: str, tmp_path: Path) -> None:
    kept: dict[str, Any] = {}

    class Reuses(Counting):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
            self.calls = getattr(self, "calls", 0) + 1
            value = as_kept(float(self.calls), kind, kept)
            if place == "losses":
                record(self, losses={"b": value})
            else:
                record(self, {"b": value} if place == "flat" else {"b": {"b": value}})
            as_kept(-1.0, kind, kept)
            return model(**inputs)["loss"]

    configs: list[Any] = [{"every_n_updates": 1, "patterns": ["b"]}]
    key = {"flat": "b/U1", "nested": "b/b/U1", "losses": "loss/online/b/U1"}[place]
    if place == "losses":
        configs = [{"kind": "OnlineLossCallback", "every_n_updates": 1}]
    training = counting(tmp_path, numbers(), TrackOutputs(configs, tmp_path / "run"), kind=Reuses, max_steps=4)
    training.train()
    assert points(tmp_path / "run", key) == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_an_output_that_nothing_tracks_is_never_looked_at(tmp_path: Path) -> None:
    class Unhandy:
        def __deepcopy__(self, _: Any) -> Any:
            raise AssertionError

        __array__ = __deepcopy__

    class Records(Counting):
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            record(self, {"object": Unhandy(), "text": "so", "list": [object()]})
            return super().compute_loss(*arguments, **named)

    training = counting(tmp_path, numbers(), TrackOutputs(CONFIGS, tmp_path / "run"), kind=Records)
    training.train()
    assert read_run(tmp_path / "run").entries == training.books.entries()


@pytest.mark.parametrize("given", [{"samples": -1}, {"samples": True}, {"samples": 2.0}, {"samples": "4"}])
def test_what_is_no_number_of_samples_is_refused(given: dict[str, Any], tmp_path: Path) -> None:
    class Wrong(Counting):
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            record(self, **given)

    with pytest.raises(UpdateOutputError, match="expected an int of at least 0"):
        counting(tmp_path, numbers(), TrackOutputs([EVERY], tmp_path / "run"), kind=Wrong).train()


@pytest.mark.parametrize("what", ["v", "samples", "losses"])
def test_what_is_recorded_twice_is_refused(what: str, tmp_path: Path) -> None:
    class Twice(Counting):
        def compute_loss(self, *arguments: Any, **named: Any) -> Any:
            for _ in range(2):
                record(self, {"v": 1.0} if what == "v" else None, **({} if what == "v" else {what: 4}))

    with pytest.raises(UpdateOutputError, match=f"'{what}' was recorded twice"):
        counting(tmp_path, numbers(), TrackOutputs([EVERY], tmp_path / "run"), kind=Twice).train()
