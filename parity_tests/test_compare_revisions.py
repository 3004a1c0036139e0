"""The comparison of two revisions sees a byte that differs, and a file that only one of them has."""

from __future__ import annotations

from pathlib import Path

import pytest

from parity_tests import compare_revisions
from parity_tests.revision_runs import draw_training


def runs(path: Path, **files: bytes) -> Path:
    for name, content in {"log": b"{}\n{}\n", "array": b"12", "rest": b"", **files}.items():
        folder = {"log": "metrics", "rest": "tensorboard"}.get(name, "update_outputs/U1")
        (path / "3_jax" / folder).mkdir(parents=True, exist_ok=True)
        (path / "3_jax" / folder / name).write_bytes(content)
    return path


def test_runs_that_are_the_same_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare_revisions.compare(runs(tmp_path / "a"), runs(tmp_path / "b", rest=b"not compared")) == []
    assert capsys.readouterr().out == "a: 2 files, 2 log lines, 8 bytes compared; 0 files differ\n"


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ({"log": b"{}\n{ }"}, "3_jax/metrics/log"),
        ({"array": b"13"}, "3_jax/update_outputs/U1/array"),
        ({"other": b""}, "3_jax/update_outputs/U1/other"),
    ],
)
def test_what_differs_is_named(files: dict[str, bytes], name: str, tmp_path: Path) -> None:
    before, after = runs(tmp_path / "a"), runs(tmp_path / "b", **files)
    assert compare_revisions.compare(before, after) == compare_revisions.compare(after, before) == [name]


def test_a_training_is_the_same_whenever_it_is_drawn() -> None:
    for number in range(40):
        assert repr(draw_training(number)) == repr(draw_training(number))
    assert repr(draw_training(0)) != repr(draw_training(1))


def test_the_trainings_are_as_many_sided_as_what_is_promised() -> None:
    drawn = [draw_training(number) for number in range(100)]
    text = repr([steps for steps, _, _ in drawn])
    assert all(
        word in text for word in ("1e-05", "1e+17", "nan", "-inf", "größe", "True", "None", "bfloat16", "weight")
    )
    reductions = repr([[config["reduce"] for config in configs] for _, configs, _ in drawn])
    assert all(
        f"'{name}'" in reductions for name in ("mean", "last", "sum", "min", "max", "std", "var", "count", "stack")
    )
