"""A run directory that is removed while the run goes on is made again, and nothing that is still in memory is lost."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from noether_core import RunLockedError, read_run
from noether_core.emit import written
from noether_torch import Run

CONFIG = {"every_n_updates": 1, "keys": ["loss"]}
SAVER = {"every_n_updates": 2, "keys": ["field"], "save_output": True, "log_output": False}
TOLD = "was removed while it is written. It is made again"


def steps(run: Any, first: int, last: int) -> None:
    for update in range(first, last + 1):
        run.step({"loss": update / 2, "field": np.full(3, update)})


def all_of(path: Path) -> None:
    shutil.rmtree(path)


def the_metrics(path: Path) -> None:
    shutil.rmtree(path / "metrics")


def one_file(path: Path) -> None:
    (path / "metrics" / "1.jsonl").unlink()


@pytest.mark.parametrize("remove", [all_of, the_metrics, one_file], ids=lambda function: function.__name__)
@pytest.mark.parametrize("durability", ["interval", "flush"])
def test_it_is_made_again_with_what_is_in_memory(
    remove: Callable[[Path], None], durability: Any, tmp_path: Path
) -> None:
    path = tmp_path / "run"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Run(path, [CONFIG, SAVER], durability=durability) as run:
            steps(run, 1, 4)
            assert run.log_writer.disk.wait(is_durable=True)
            remove(path)
            steps(run, 5, 8)
            assert run.log_writer.disk.wait(is_durable=True)
            assert (path / "writer.lock").is_file()
            with pytest.raises(RunLockedError):
                Run(path, [CONFIG]).start()
            if remove is all_of:
                remove(path)  # once more
                steps(run, 9, 9)
            run.log_writer.flush()
    assert sum(TOLD in str(each.message) for each in caught) == 1 + (remove is all_of)
    read = read_run(path)
    last = 9 if remove is all_of else 8
    assert read.series["loss/U1"].value.tolist() == [update / 2 for update in range(1, last + 1)]
    assert read.series["loss/U1"].update.tolist() == list(range(1, last + 1))
    assert (path / "config.yaml").is_file()
    if remove is not one_file:  # of which the number's other files say that it is missing
        assert read.problems == [] if remove is all_of else True
    assert not (path / "writer.lock").exists()
    with Run(path, [CONFIG]) as again:
        steps(again, 1, 1)


def test_what_is_removed_right_before_the_end_is_made_again(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=TOLD), Run(tmp_path / "run", [CONFIG]) as run:  # noqa: PT031
        steps(run, 1, 4)
        assert run.log_writer.disk.wait(is_durable=True)
        shutil.rmtree(tmp_path / "run")
    assert read_run(tmp_path / "run").series["loss/U1"].update.tolist() == [1, 2, 3, 4]


def test_of_more_than_are_kept_the_number_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(written, "MOST_KEPT", 3)

    def train() -> None:
        with Run(tmp_path / "run", [CONFIG]) as run:
            steps(run, 1, 10)
            assert run.log_writer.disk.wait()
            shutil.rmtree(tmp_path / "run")
            steps(run, 11, 12)

    with pytest.warns(RuntimeWarning, match="its newest 3 entries.* are written again; the 7 before them are gone"):
        train()
    assert read_run(tmp_path / "run").series["loss/U1"].update.tolist() == [8, 9, 10, 11, 12]


@pytest.mark.filterwarnings("ignore:missing in the run directory:RuntimeWarning", "ignore:the disk:RuntimeWarning")
def test_what_another_run_has_begun_there_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    run = Run(path, [CONFIG]).start()
    steps(run, 1, 3)
    assert run.log_writer.disk.wait()
    shutil.rmtree(path)
    with Run(path, [CONFIG]) as other:
        steps(other, 1, 1)
        assert other.log_writer.disk.wait()
        before = (path / "metrics" / "1.jsonl").read_bytes()
        steps(run, 4, 4)
        run.finish()
        assert (path / "metrics" / "1.jsonl").read_bytes() == before
    assert read_run(path).series["loss/U1"].update.tolist() == [1]
