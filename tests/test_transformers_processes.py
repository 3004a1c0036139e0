"""Test that a transformers Trainer in two processes logs what one process logs of the same data, over restarts too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from bridge_processes import logged, run_together

from noether_core import read_run

OF_THE_MODEL = ("eval/loss", "eval/runtime", "eval/samples_per_second", "eval/steps_per_second")  # and of the clock


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers")
    run_together("transformers_process.py", folder, (1, 2))
    return folder


def told(trained: Path, count: int, rank: int) -> dict[str, Any]:
    return dict(json.loads((trained / f"{count}_{rank}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("run", ["whole", "stops", "late"])
def test_two_processes_log_what_one_does(run: str, trained: Path) -> None:
    one, two = (logged(trained / count / run, OF_THE_MODEL) for count in ("1", "2"))
    assert one == two
    assert one["x/count/E1"][3] == [40] * len(one["x/count/E1"][3])
    assert set(OF_THE_MODEL) <= set(read_run(trained / "2" / run).series)
    assert not list((trained / "2" / run).glob("unmerged/*"))


def test_all_processes_are_at_the_same_place_and_have_the_same_history(trained: Path) -> None:
    found = [told(trained, *which) for which in ((1, 0), (2, 0), (2, 1))]
    for each in found:
        del each["warnings"]
    assert found[0] == found[1] == found[2]
    assert found[0]["stops"][0] == "E2_U10_S80"


def test_a_checkpoint_that_another_callback_asked_for_late_says_what_it_lacks(trained: Path) -> None:
    first, second = ([each for each in told(trained, 2, rank)["warnings"] if "process" in each] for rank in (0, 1))
    assert len(first) == 1
    assert "has what process 0 tracked" in first[0]
    assert second == []


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("saved", ["1", "2"])
def test_a_training_goes_on_from_a_checkpoint_of_as_many_processes_or_not(
    count: str, saved: str, trained: Path
) -> None:
    """The checkpoint is of update 7, in the middle of all callbacks' intervals."""
    resumed = logged(trained / count / f"resumed_{saved}", OF_THE_MODEL)
    assert resumed == logged(trained / "1" / "whole", OF_THE_MODEL)
