"""Test that Accelerate with two processes logs what one process logs of the same data, over restarts too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bridge_processes import logged, run_together

from noether_core import read_run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accelerate")
    run_together("accelerate_process.py", folder, (1, 2))
    return folder


def told(trained: Path, count: int, rank: int) -> dict[str, Any]:
    return dict(json.loads((trained / f"{count}_{rank}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("run", ["whole", "split", "stream", "cut"])
def test_two_processes_log_what_one_does(run: str, trained: Path) -> None:
    one, two = (trained / count / run / "metrics" / "1.jsonl" for count in ("1", "2"))
    assert one.read_bytes() == two.read_bytes() != b""
    assert not list((trained / "2" / run).glob("unmerged/*"))


@pytest.mark.parametrize(("run", "per_epoch"), [("uneven", 40), ("uneven_stream", 38)])
def test_what_the_loader_fills_its_last_batches_up_with_counts(run: str, per_epoch: int, trained: Path) -> None:
    """Of 37 samples, the last batch of 5 is filled up to the size of the others, a stream's to an even one."""
    assert read_run(trained / "1" / run).series["x/count/E1"].value.tolist() == [37] * 3
    found = read_run(trained / "2" / run).series["x/count/E1"]
    assert found.value.tolist() == [per_epoch] * 3
    assert found.sample.tolist() == [per_epoch, 2 * per_epoch, 3 * per_epoch]


def test_all_processes_are_at_the_same_place_and_are_warned_of_nothing(trained: Path) -> None:
    one, *two = (told(trained, *which) for which in ((1, 0), (2, 0), (2, 1)))
    assert two[0] == two[1]
    assert {**two[0], "uneven": 0, "uneven_stream": 0} == {**one, "uneven": 0, "uneven_stream": 0}
    assert one["warnings"] == []


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("saved", ["1", "2"])
def test_a_training_goes_on_from_a_state_of_as_many_processes_or_not(count: str, saved: str, trained: Path) -> None:
    """The state is of update 7, in the middle of all callbacks' intervals."""
    assert logged(trained / count / f"resumed_{saved}") == logged(trained / "1" / "whole")
