"""Bits of a run's files are flipped, in all of them: nothing wrong is given out, each flip is reported, and costs one line."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from damaged_runs import Expected, make_run, train

import noether_torch
from noether_core import read_run
from noether_core.parity.check import check_run

SIZE = 120  # flips; with --full 10,000


def test_a_flipped_bit_anywhere_is_reported_and_never_gives_a_wrong_value(tmp_path: Path, full: bool) -> None:
    run = tmp_path / "run"
    make_run(run)
    assert check_run(run).is_clean
    expected = Expected(run)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    kinds = {"".join(path.relative_to(tmp_path).parts[:2]) + path.suffix for path in files}
    assert len(kinds) >= 8, kinds
    drawn = random.Random(7)
    for number in range(10_000 if full else SIZE):
        file = files[number % len(files)]
        data = bytearray(file.read_bytes())
        bit = drawn.randrange(8 * len(data))
        before = bytes(data)
        data[bit // 8] ^= 1 << bit % 8
        file.write_bytes(data)
        try:
            reports = expected.reports(file)
            assert any(str(file) in report for report in reports), (file, bit, reports)
            if file.suffix == ".jsonl":
                (report,) = [report for report in reports if str(file) in report][:1]
                offset = int(report.split(", byte ")[1].split(":")[0])
                assert before.rfind(b"\n", 0, bit // 8) + 1 == offset
            if run in file.parents and number % (1 if full else 4) == 0:
                report = check_run(run)
                assert not report.is_clean
                assert any(str(file) in problem for problem in report.problems)
        finally:
            file.write_bytes(before)
    assert expected.reports(files[0]) == []


@pytest.mark.parametrize("what", ["cut", "empty", "gone", "zeros"])
def test_a_file_that_is_cut_or_gone_costs_no_other(what: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    make_run(run)
    expected = Expected(run)
    for file in sorted(path for path in tmp_path.rglob("*") if path.is_file()):
        data = file.read_bytes()
        if what == "gone":
            file.unlink()
        else:
            file.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "zeros": bytes(len(data))}[what])
        try:
            if file.suffix == ".jsonl" or "starts" in file.parts:
                found = read_run(run)
                if what == "cut":
                    assert found.problems
            elif what == "gone" and file.suffix == ".safetensors" and file.is_relative_to(run / "update_outputs"):
                assert any(file.name in problem for problem in check_run(run).problems)
            elif what != "gone":
                assert any(str(file) in report for report in expected.reports(file))
        finally:
            file.write_bytes(data)


def test_a_damaged_record_leaves_the_line_of_descent_as_it_was(tmp_path: Path) -> None:
    config = {"every_n_updates": 10, "keys": ["loss"]}
    with noether_torch.Run(tmp_path, [{**config, "every_n_updates": 1}]) as run:
        train(run, 12, 0)
    with noether_torch.Run(tmp_path, [config]) as run:  # from the beginning, and logs at 10 first
        train(run, 20, 1)
    whole = read_run(tmp_path)
    assert whole.series["loss/U10"].update.tolist() == [10, 20]
    assert "loss/U1" not in whole.series
    record = tmp_path / "starts" / "2.json"
    data = record.read_bytes()
    for damaged in (data[:20] + b"X" + data[21:], data[:-20], data.replace(b'"parent": null', b'"parent": "me"')):
        record.write_bytes(damaged)
        found = read_run(tmp_path)
        assert found.entries == whole.entries
        assert len(found.problems) == 1
        assert "its copy, which is intact" in found.problems[0]
    before = json.loads(data)
    record.write_text(
        json.dumps({name: before[name] for name in ("id", "parent", "iteration")})
    )  # of an earlier version
    assert (read_run(tmp_path).entries, read_run(tmp_path).problems) == (whole.entries, [])
