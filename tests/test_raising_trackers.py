"""No tracker ends a training, or costs another tracker or the log anything: whatever it raises, and from wherever."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import noether_torch
from noether_core import read_run
from noether_core.emit.export import export_run


class Odd(BaseException):
    """Be no Exception."""

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


ERRORS = [
    ValueError("\x1b[31mred"),
    Odd(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    MemoryError(),
    RecursionError(),
]


class Tracker:
    """Fail at some of its calls, and change what it is given."""

    def __init__(self, rng: random.Random, share: float, inline: bool) -> None:
        self._rng, self._share, self.inline = rng, share, inline
        self.entries: list[Any] = []
        self.failed = 0

    def __repr__(self) -> str:
        if self._rng.random() < 0.5:
            raise RuntimeError("no repr")
        return "\x1b]0;a tracker\x07"

    @property
    def kind(self) -> str:
        raise RuntimeError("no kind")

    def _maybe_fail(self) -> None:
        if self._rng.random() < self._share:
            self.failed += 1
            error = self._rng.choice(ERRORS)
            if self.inline and isinstance(error, KeyboardInterrupt | SystemExit):
                error = ERRORS[1]  # those are the training's own, on its thread
            if self._rng.random() < 0.3:
                warnings.warn("a tool's own warning", DeprecationWarning, stacklevel=1)
            raise error

    def log(self, entry: Mapping[str, Any]) -> None:
        self._maybe_fail()
        self.entries.append(copy.deepcopy(dict(entry)))
        given: Any = entry
        given["loss/U1"] = "changed"
        if "list" in given:
            given["list"][0]["b"] = "changed"
            given["list"].append("changed")

    def close(self) -> None:
        self._maybe_fail()


def by_update(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for entry in entries:
        found.setdefault(entry["update"], {}).update(entry)
    return list(found.values())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.sweep(3)
@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("filtered", ["ignore", "error"])
@pytest.mark.parametrize("inline", [False, True])
def test_the_log_and_the_other_trackers_are_whole(inline: bool, filtered: Any, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    trackers = [Tracker(rng, share, inline) for share in (0.1, 0.0, 0.1, 1.0, 0.0)]
    path = tmp_path / "run"
    with warnings.catch_warnings():
        warnings.simplefilter(filtered)
        with noether_torch.Run(path, [{"every_n_updates": 1, "keys": ["loss"]}], trackers=trackers) as run:
            for number in range(1, 41):
                run.step({"loss": np.float32(number)})
                run.log({"list": [{"b": number}]})
        expected = [
            {"epoch": 0, "update": number, "sample": number, "loss/U1": float(number), "list": [{"b": number}]}
            for number in range(1, 41)
        ]
        read = read_run(path)
        assert not read.problems
        assert read.entries == run.log_writer.log_entries == expected
        for tracker in trackers:
            entries = by_update(tracker.entries)
            if tracker.failed == 0:
                assert entries == expected
            else:  # it has what came before it failed
                whole = [entry for entry in entries if "list" in entry]
                assert whole == expected[: len(whole)]
    assert export_run(path, "csv").entries == 40
    assert len(run.log_writer.dropped_entries) >= 1
