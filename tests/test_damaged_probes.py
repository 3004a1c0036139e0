"""Check that no damage to a run's probes is passed over when it is compared: it is told, and nothing is called the same."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import pytest
from fuzzed_probes import make_probed
from port_training import train
from typer.testing import CliRunner

from noether_core.cli import app
from noether_core.parity.between_runs import Twin, assert_same_training, compare_trainings
from noether_core.parity.between_runs.asserting import NotTheSameTrainingError
from noether_core.parity.divergence import Comparison

Damage = Callable[[Path, Path], None]


def written(change: Callable[[bytes], bytes]) -> Damage:
    return lambda file, _: _write(file, change(file.read_bytes()))


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)


def flipped(place: float) -> Damage:
    def change(data: bytes) -> bytes:
        at = int(place * len(data))
        return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]

    return written(change)


def other_update(file: Path, run: Path) -> None:
    """Put another file of the same kind there: whole, and of this run."""
    others = [each for each in sorted(run.rglob(f"{file.parent.name}/*.safetensors")) if each != file]
    file.write_bytes(others[0].read_bytes() if others else b"{}")


def directory(file: Path, _: Path) -> None:
    file.unlink()
    file.mkdir()


def link(file: Path, run: Path) -> None:
    elsewhere = run.with_name("elsewhere")
    shutil.move(file, elsewhere)
    file.symlink_to(elsewhere)


DAMAGES: dict[str, Damage] = {
    "removed": lambda file, _: file.unlink(),
    "emptied": written(lambda _: b""),
    **{f"cut to {share:.0%}": written(lambda data, share=share: data[: int(share * len(data))]) for share in (0.01, 0.5, 0.99)},
    "a byte more": written(lambda data: data + b"\0"),
    "a length beyond all": written(lambda data: b"\xff" * 8 + data[8:]),
    **{f"a bit at {place:.0%}": flipped(place) for place in (0.0, 0.02, 0.2, 0.5, 0.8, 0.95, 0.999)},
    "text": written(lambda _: b"nonsense" * 100),
    "another update's": other_update,
    "renamed": lambda file, _: _renamed(file),
    "a directory": directory,
    "a link": link,
}  # fmt: skip


def _renamed(file: Path) -> None:
    file.rename(file.with_suffix(".bak"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("damaged") / "run"
    make_probed(path)
    return path


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a training, and one that differs from it."""
    root = tmp_path_factory.mktemp("pair")
    return train(root / "a", updates=3), train(root / "b", updates=3, lr=0.2)


def probes_of(run: Path) -> list[str]:
    return sorted(file.relative_to(run).as_posix() for file in run.glob("update_outputs/probes/**/*.safetensors"))


@contextmanager
def damaged(original: Path, copy: Path, damage: Damage, *names: str) -> Iterator[Path]:
    """Copy a run, and damage some files of it while the block lasts."""
    shutil.copytree(original, copy)
    for name in names:
        damage(copy / name, copy)
    yield copy
    shutil.rmtree(copy)


def is_told(found: Comparison, run: Path, name: str) -> bool:
    """Tell whether a note names a file, and of which updates something is missing because of it."""
    notes = [note for note in found.warnings if str(run / name) in note]
    return any(re.search(r" lacks the .* (of|from) updates? \d+", note) for note in notes)


def test_whole_probes_are_the_same(original: Path, tmp_path: Path) -> None:
    with damaged(original, tmp_path / "copy", other_update) as copy:
        found = compare_trainings(original, copy)
    assert (found.outcome, [each for each in found.warnings if "lacks" in each]) == ("same", [])


@pytest.mark.parametrize("name", DAMAGES)
def test_no_damaged_file_is_passed_over(name: str, original: Path, tmp_path: Path) -> None:
    files = probes_of(original)
    assert len(files) == 3
    for file, is_first in product(files, (True, False)):
        with damaged(original, tmp_path / "copy", DAMAGES[name], file) as copy:
            found = compare_trainings(*((copy, original) if is_first else (original, copy)))
            assert (found.outcome, found.exit_code) == ("cannot say", 2), (file, found.sentence)
            assert is_told(found, copy, file), (found.sentence, found.warnings)


def test_several_damaged_files_are_counted(original: Path, tmp_path: Path) -> None:
    with damaged(original, tmp_path / "copy", DAMAGES["emptied"], *probes_of(original)[:2]) as copy:
        found = compare_trainings(original, copy)
        assert all(is_told(found, copy, name) for name in probes_of(original)[:2])
    assert "lacks the arrays of update 1 and 1 more: " in found.sentence


@pytest.mark.parametrize("name", ["removed", "cut to 50%", "a bit at 50%"])
def test_what_is_left_may_still_differ(name: str, pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    for file in probes_of(b):
        with damaged(b, tmp_path / "copy", DAMAGES[name], file) as copy:
            found = compare_trainings(a, copy)
            assert (found.outcome, found.exit_code) == ("differs", 1), (file, found.sentence)
            assert is_told(found, copy, file), found.warnings


def test_all_of_them_gone_is_no_reason_to_add_probes(original: Path, tmp_path: Path) -> None:
    with damaged(original, tmp_path / "copy", DAMAGES["removed"], *probes_of(original)) as copy:
        found = compare_trainings(original, copy)
        assert str(copy / probes_of(original)[0]) in found.sentence
    assert found.outcome == "cannot say"
    assert "copy has no probed updates that can be read: " in found.sentence
    assert "Track" not in found.sentence


def test_a_file_of_another_run_is_none_of_this_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = pair
    for name in probes_of(a):
        theirs = (b / name).read_bytes()
        with damaged(a, tmp_path / "copy", lambda file, _, theirs=theirs: _write(file, theirs), name) as copy:
            found = compare_trainings(a, copy)
            assert found.outcome == "cannot say", name
            assert "wrote it, which is none of this run" in found.sentence


def test_damage_beside_the_probes_is_a_note(original: Path, tmp_path: Path) -> None:
    for name in ("metrics/1.time.jsonl", "starts/1.json", "config.yaml"):
        with damaged(original, tmp_path / "copy", DAMAGES["cut to 50%"], name) as copy:
            found = compare_trainings(original, copy)
            assert any(str(copy / Path(name).parts[0]) in note or "no start says" in note for note in found.warnings), (
                name
            )


def test_a_twin_that_is_damaged_is_told(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(pair[0], tmp_path / "run"))
    twin = Twin(run, run / "twins" / "1", 1, rows=False)
    twin.write()
    monkeypatch.setenv("NOETHER_TWIN", str(twin.path))
    train(run, updates=3)
    monkeypatch.delenv("NOETHER_TWIN")
    (file, *_) = [name for name in probes_of(twin.path) if "arrays/E0_U2" in name]
    for name in ("emptied", "a bit at 50%"):
        with damaged(twin.path, tmp_path / "twin", DAMAGES[name], file) as copy:
            found = compare_trainings(run, pair[0], twins=[copy])
            assert found.outcome == "same", found.sentence  # less noise is known, so nothing is called the same for it
            assert is_told(found, copy, file), found.warnings


def test_a_test_and_the_command_say_it_too(original: Path, tmp_path: Path) -> None:
    with damaged(original, tmp_path / "copy", DAMAGES["emptied"], probes_of(original)[0]) as copy:
        with pytest.raises(NotTheSameTrainingError, match=r"lacks the arrays of update 1: .*E0_U1_S1\.safetensors"):
            assert_same_training(original, copy)
        result = CliRunner().invoke(app, ["compare", str(original), str(copy)])
    assert result.exit_code == 2
    assert "Traceback" not in result.output
