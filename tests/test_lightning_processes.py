"""Test that Lightning with two processes logs what one process logs of the same data, to the bit, over restarts too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bridge_processes import logged, run_together
from typer.testing import CliRunner

from noether_core import read_run
from noether_core.cli import app
from noether_core.errors import ScheduleError
from noether_torch.lightning_batches import SampleCount


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lightning")
    run_together("lightning_process.py", folder, (1, 2))
    return folder


def told(trained: Path, count: int, rank: int) -> dict[str, Any]:
    return dict(json.loads((trained / f"{count}_{rank}.json").read_text(encoding="utf-8")))


@pytest.mark.parametrize("run", ["whole", "stops", "cut"])
def test_two_processes_log_what_one_does(run: str, trained: Path) -> None:
    one, two = (trained / count / run / "metrics" / "1.jsonl" for count in ("1", "2"))
    assert one.read_bytes() == two.read_bytes() != b""
    assert not list((trained / "2" / run).glob("unmerged/*"))


def test_all_processes_are_at_the_same_place_and_are_warned_of_nothing(trained: Path) -> None:
    found = [told(trained, *which) for which in ((1, 0), (2, 0), (2, 1))]
    names = ("whole", "stops", "cut", "resumed_1", "resumed_2")
    assert [[each[name] for name in names] for each in found] == [
        ["E3_U15_S120", "E3_U15_S120", "E2_U10_S80", "E3_U15_S120", "E3_U15_S120"]
    ] * 3
    assert not [warning for each in found for warning in each["warnings"] if "process" in warning]


@pytest.mark.parametrize("count", ["1", "2"])
@pytest.mark.parametrize("saved", ["1", "2"])
def test_a_training_goes_on_from_a_checkpoint_of_as_many_processes_or_not(
    count: str, saved: str, trained: Path
) -> None:
    """The checkpoint is of update 5, in the middle of three callbacks' intervals."""
    assert logged(trained / count / f"resumed_{saved}") == logged(trained / "1" / "whole")


def test_a_failed_process_ends_the_others_and_what_they_had_can_be_merged(trained: Path) -> None:
    assert "on purpose" in told(trained, 2, 1)["fails"]
    assert "RuntimeError" in told(trained, 2, 0)["fails"]
    path = trained / "2" / "fails"
    assert "x/mean/U2" not in read_run(path).entries[-1]
    assert CliRunner().invoke(app, ["merge", str(path)]).exit_code == 0
    whole, rest = logged(trained / "1" / "whole"), read_run(path).entries[-1]
    first_three = 3 * whole["x/mean/U3"][3][0]
    assert (rest["update"], rest["x/count/U2"], rest["x/count/E1"]) == (3, 8, 24)
    assert first_three == pytest.approx(3 * rest["x/mean/E1"], rel=1e-15)


@pytest.mark.parametrize(("batch_size", "samples"), [(5, 10), (None, None), (len, None)])
def test_samples_that_the_processes_might_count_differently_are_refused(batch_size: Any, samples: int | None) -> None:
    batch = np.zeros((3, 2))
    counting = SampleCount(batch_size, 2, "it")
    if samples is not None:
        assert counting.of_batch(batch, [batch]) == samples
        return
    with pytest.raises(ScheduleError, match=r"counts might part; give TrackOutputs\(batch_size=\.\.\.\)"):
        counting.of_batch(batch, [batch])
    assert SampleCount(batch_size, 2, None).of_batch(batch, [batch]) is None
    assert SampleCount(batch_size if batch_size is None else 3, 1, "it").of_batch(batch, [batch]) == 3


def test_the_loaders_batch_size_counts_where_the_processes_batches_may_differ() -> None:
    class Stream:
        batch_size = 4

    assert SampleCount(None, 2, "it").of_batch(np.zeros(3), Stream()) == 8
    assert SampleCount(len, 2, None).of_batch(np.zeros(3), Stream()) == 8
    assert SampleCount(None, 1, "it").of_batch(np.zeros(3), Stream()) == 3
