"""What processes left that ended or failed at different times is merged as if they had pooled it, to the bit."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_merge import shown

import noether_jax
import noether_torch
from noether_core import TrainingIteration, read_run
from noether_core.emit.merged_log import MergedLog
from noether_core.emit.unmerged import find_unmerged
from noether_core.errors import ProcessesMissingError, RunLockedError
from noether_core.parity import merge_run
from noether_core.reduce.threads import ThreadExchange, run_threads

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
FRONT_ENDS: list[Any] = [noether_torch, noether_jax]


def drawn_configs(rng: np.random.Generator) -> list[dict[str, Any]]:
    arrays = {"log_output": False, "save_output": True, "id": "arrays", "nonfinite": "skip"}
    return [
        {"every_n_updates": int(rng.integers(1, 5)), "keys": ["x"], "reduce": ["mean", "std", "last", "count", "max"]},
        {"every_n_updates": int(rng.integers(1, 6)), "keys": ["field"], "reduce": ["last", "stack", "sum"], **arrays},
        {"every_n_updates": int(rng.integers(2, 6)), "patterns": ["w"], "reduce": "sum", "replicated": ["w/r"]},
    ]


def outputs_of(update: int, process: int) -> dict[str, Any]:
    rng = np.random.default_rng([update, process])
    outputs: dict[str, Any] = {"x": np.float32(rng.normal()), "field": rng.normal(size=2).astype(np.float32)}
    if rng.random() < 0.2:
        outputs["x"] = np.float32([np.nan, np.inf, -np.inf][rng.integers(3)])
    return outputs | {"w/r": float(update)} | ({f"w/{process}": float(rng.normal()) * 1e30} if process else {})


def give_up(exchange: ThreadExchange, number: int, missing: int, many: int = 1) -> None:
    """Decide that a process does not come to an arrival of this number, and to those after it."""
    group = exchange._group
    with group._changed:
        for each in range(number, number + many):
            group._verdicts.setdefault(each, (missing,))
        group._changed.notify_all()


def train(
    path: Path, configs: Any, updates: list[int], front_end: Any, *, missed: tuple[int, int] = (0, 0), fails: int = -1
) -> None:
    """Train in threads, each so many updates; one fails at its end, and some arrivals fail."""

    def body(exchange: ThreadExchange) -> None:
        give_up(exchange, missed[0], 1, missed[1])
        with (
            contextlib.suppress(ProcessesMissingError, ZeroDivisionError),
            front_end.Run(path, configs, processes=exchange) as run,
        ):
            for update in range(updates[exchange.index]):
                with contextlib.suppress(ProcessesMissingError):
                    run.step(outputs_of(update, exchange.index))
            if exchange.index == fails:
                give_up(exchange, exchange._group._arrivals[fails], fails, 99)
                raise ZeroDivisionError

    run_threads(len(updates), body)


@pytest.mark.sweep(20)
@pytest.mark.parametrize("seed", range(60))
def test_what_was_missed_when_some_had_ended_is_merged_to_the_bit(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    count, front_end, configs = int(rng.integers(2, 5)), FRONT_ENDS[seed % 2], drawn_configs(rng)
    updates = [int(each) for each in rng.integers(1, 12, count)]
    train(tmp_path / "whole", configs, updates, front_end)
    assert not find_unmerged(tmp_path / "whole")
    whole = shown(tmp_path / "whole")
    if seed % 3:
        train(tmp_path / "run", configs, updates, front_end, missed=(int(rng.integers(1, 8)), 99))
    else:
        train(tmp_path / "run", configs, updates, front_end, fails=int(rng.integers(0, count)))
    elsewhere = tmp_path / "elsewhere"
    if files := [file for file in find_unmerged(tmp_path / "run") if not rng.integers(4)]:  # some files come later
        for file in files:
            there = elsewhere / file.relative_to(tmp_path / "run")
            there.parent.mkdir(parents=True, exist_ok=True)
            file.rename(there)
        merge_run(tmp_path / "run")
        shutil.copytree(elsewhere, tmp_path / "run", dirs_exist_ok=True)
    report = merge_run(tmp_path / "run")
    assert report.problems == []
    assert shown(tmp_path / "run")[:3] == whole[:3]
    report = merge_run(tmp_path / "run")
    assert (report.merged, report.problems) == ([], [])
    assert shown(tmp_path / "run")[:3] == whole[:3]
    assert not read_run(tmp_path / "run").problems


def test_what_the_main_process_pooled_and_could_not_log_is_merged(tmp_path: Path) -> None:
    configs = [{"every_n_updates": 2, "keys": ["x"], "reduce": ["mean", "std"]}]

    def broken(*_: Any) -> None:
        raise OSError("the disk is full")

    def body(exchange: ThreadExchange) -> None:
        with (
            contextlib.suppress(ProcessesMissingError, OSError),
            noether_torch.Run(tmp_path / "run", configs, processes=exchange) as run,
        ):
            if exchange.index == 0:
                run.callbacks[0]._write = broken  # type: ignore[method-assign]
            for update in range(4):
                run.step(outputs_of(update, exchange.index))
                if exchange.index == 0 and update:
                    raise AssertionError
        give_up(exchange, 2, 0, 9)

    train(tmp_path / "whole", configs, [2, 4, 4], noether_torch)
    give_up_later = run_threads(3, body)
    assert give_up_later == [None] * 3
    report = merge_run(tmp_path / "run")
    assert report.problems == []
    assert shown(tmp_path / "run")[:3] == shown(tmp_path / "whole")[:3]


@pytest.mark.parametrize("damage", [b"", b"foreign", None])
def test_a_damaged_file_is_no_obstacle_to_what_is_saved_now(damage: bytes | None, tmp_path: Path) -> None:
    configs = [{"every_n_updates": 2, "keys": ["x"]}]
    train(tmp_path / "whole", configs, [4, 4], noether_torch)
    train(tmp_path / "run", configs, [4, 4], noether_torch, missed=(1, 99))
    for file in find_unmerged(tmp_path / "run"):
        file.write_bytes(file.read_bytes()[:-1] if damage is None else damage)
    train(tmp_path / "run", configs, [4, 4], noether_torch, missed=(2, 1))
    merge_run(tmp_path / "run")
    assert shown(tmp_path / "run")[:3] == shown(tmp_path / "whole")[:3]


def test_files_of_two_starts_are_not_mixed(tmp_path: Path) -> None:
    configs = [{"every_n_updates": 2, "keys": ["x"]}]
    train(tmp_path / "run", configs, [2, 2], noether_torch, missed=(1, 99))
    for file in find_unmerged(tmp_path / "run"):
        if file.name.startswith("1"):
            file.unlink()
    kept = [file for file in find_unmerged(tmp_path / "run") if file.name.startswith("0")]
    train(tmp_path / "run", configs, [2, 2], noether_torch, missed=(1, 99))
    for file in find_unmerged(tmp_path / "run"):
        if file.name.startswith("0") and file not in kept:
            file.unlink()
    report = merge_run(tmp_path / "run")
    assert report.merged == []
    assert any("lacks what other processes had: 1-of-2" in problem for problem in report.problems)
    assert any("lacks what other processes had: 0-of-2" in problem for problem in report.problems)


def test_a_merge_while_the_run_goes_on_is_refused_and_takes_nothing_from_it(tmp_path: Path) -> None:
    configs = [{"every_n_updates": 2, "keys": ["x"], "reduce": ["mean"], "save_output": True}]
    train(tmp_path / "whole", configs, [6, 6], noether_torch)

    def body(exchange: ThreadExchange) -> None:
        give_up(exchange, 2, 1)
        with noether_torch.Run(tmp_path / "run", configs, processes=exchange) as run:
            write = run.callbacks[0]._write  # type: ignore[attr-defined]

            def after_a_merge(*arguments: Any) -> None:
                if exchange.index == 0:
                    with pytest.raises(RunLockedError, match="a run of this process"):
                        merge_run(tmp_path / "run")
                write(*arguments)

            run.callbacks[0]._write = after_a_merge  # type: ignore[attr-defined]
            for update in range(6):
                with contextlib.suppress(ProcessesMissingError):
                    run.step(outputs_of(update, exchange.index))

    run_threads(2, body)
    merge_run(tmp_path / "run")
    assert shown(tmp_path / "run")[:3] == shown(tmp_path / "whole")[:3]


@pytest.mark.parametrize("is_provisional", [False, True])
def test_an_entry_that_is_longer_than_a_line_may_be_is_merged_whole(is_provisional: bool, tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [{"every_n_updates": 1, "keys": ["loss"]}]) as run:
        run.step({"loss": 1.0})
    values = {f"{'x' * 100}{number}": number / 3 for number in range(80_000)}  # 10 MB
    MergedLog(tmp_path).add(TrainingIteration(0, 1, 1), values, {}, is_whole=True, is_provisional=is_provisional)
    read = read_run(tmp_path)
    assert read.problems == []
    assert read.entries == [{"epoch": 0, "update": 1, "sample": 1, "loss/U1": 1.0, **values}]
    assert MergedLog(tmp_path).has(TrainingIteration(0, 1, 1), values, {})
