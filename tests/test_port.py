"""Take the steps of docs/compare.md with real runs: a port's planted bugs are found one after the other, and mended."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

from noether_core.parity.between_runs import calibrate, compare_trainings
from noether_core.parity.divergence import Comparison

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "compare.md").read_text(encoding="utf-8")
PORT = (ROOT / "examples" / "port" / "train_jax.py").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
MENDED = [tuple(line[1:] for line in block.splitlines()) for block in BLOCKS if re.fullmatch(r"-.*\n\+.*\n", block)]
SAID = [block.splitlines() for block in BLOCKS if re.match("Differs|Same", block)]


def program(mended: int) -> str:
    """Return the port with so many of its bugs mended."""
    text = PORT
    for wrong, right in MENDED[mended:]:
        assert text.count(right) == 1
        text = text.replace(right, wrong)
    return text


def words(sentence: str) -> str:
    """Return a sentence without what depends on the machine: how many times the noise, and the last digits."""
    return re.sub(r"[\d,.e-]+ (× noise|away)", r"N \1", re.sub(r"(\d\.\d\d)\d+", r"\1", sentence))


@pytest.fixture
def original(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "port" / "torch"
    monkeypatch.setattr(sys, "argv", ["train_torch", str(path)])
    runpy.run_path(str(ROOT / "examples" / "port" / "train_torch.py"), run_name="__main__")
    return path


def port(path: Path, mended: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["train_jax", str(path)])
    exec(compile(program(mended), "train_jax.py", "exec"), {"__name__": "__main__"})
    return path


@pytest.mark.filterwarnings("default")  # the frameworks' own; an example runs as a user runs it
def test_each_bug_is_found_named_and_mended(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    assert len(MENDED) == 3
    assert len(SAID) == 4
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    calibrate(
        original, [sys.executable, "-m", "examples.port.train_torch", str(original)], number=1, tell=lambda _: None
    )
    found: list[Comparison] = []
    for mended in range(4) if full else (0, 3):
        run = port(tmp_path / "port" / f"jax{mended}", mended, monkeypatch)
        found.append(compare_trainings(original, run))
        sentence, *causes = SAID[mended]
        assert words(found[-1].sentence).startswith(words(sentence))
        named = [f"1. {cause.sentence} [{cause.id}]" for cause in found[-1].causes]
        assert [words(cause) for cause in causes] == [words(cause) for cause in named[: len(causes)]]
    assert [each.exit_code for each in found] == [*[1] * (len(found) - 1), 0]
    assert all(each.has_twins for each in found)


def test_the_page_shows_the_lines_that_the_script_has() -> None:
    script = (ROOT / "examples" / "port" / "train_torch.py").read_text(encoding="utf-8")
    marked = [line.removesuffix("  # +") for line in script.splitlines() if line.endswith("  # +")]
    (shown,) = [block.splitlines() for block in BLOCKS if block.startswith("+from")]
    assert [line[1:] for line in shown] == marked
    assert sum("twin" in line and "import" not in line for line in marked) == 3
