"""Check the pages in docs/ against the examples they show, and run what stands in them."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import yaml

from noether_core import load_callbacks, read_run

ROOT = Path(__file__).parents[1]
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted((ROOT / "docs").glob("*.md"))}
COMMAND = re.compile(r"`python -m examples\.(\w+)`")
SHOWN = [name for name, text in PAGES.items() if COMMAND.search(text)]
COMPARED = [name for name, text in PAGES.items() if "```diff" in text]
LINES = {"jax_fused": 5, "optax_chain": 6}  # their pages say why; elsewhere at most three
MARK = "  # +"
PRINTS = r"```python\n(.*?)```(\n\n```text\n(.*?)```)?"


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES[name], re.DOTALL)


def example(name: str) -> str:
    match = COMMAND.search(PAGES[name])
    assert match, f"docs/{name}.md does not say how to run its example"
    return match[1]


def source(name: str) -> str:
    return (ROOT / "examples" / f"{example(name)}.py").read_text(encoding="utf-8")


def diff(name: str) -> list[str]:
    (block,) = blocks(name, "diff")
    return block.splitlines()


def changes(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each added line of a diff, with the lines that it replaces."""
    replaced: list[str] = []
    for line in lines:
        if line.startswith("-"):
            replaced.append(line[1:])
        elif line.startswith("+"):
            yield line[1:], replaced
            replaced = []
        else:
            assert replaced == [], f"{replaced} is taken away and nothing takes its place"


def plain_loop(program: str, lines: list[str]) -> str:
    """Return a program without what the library adds: the diff undone.

    The diffs ignore white space, as `git diff -w` does: what stood in a `with` that was added moves a level to the left.
    """
    plain: list[str] = []
    added = changes(lines)
    open_blocks: list[int] = []
    for line in program.splitlines():
        indentation = len(line) - len(line.lstrip())
        while line and open_blocks and indentation <= open_blocks[-1]:
            open_blocks.pop()
        if not line.endswith(MARK):
            plain.append(line[4 * len(open_blocks) :])
            continue
        new, replaced = next(added, ("nothing", []))
        assert line.removesuffix(MARK) == new
        plain += replaced
        if new.endswith(":"):
            open_blocks.append(indentation)
    assert list(added) == []
    return "\n".join(plain) + "\n"


# ------------------------------------------------------------------ the diffs


@pytest.mark.parametrize("name", COMPARED)
def test_the_diff_is_what_the_example_marks(name: str) -> None:
    marked = [line.removesuffix(MARK) for line in source(name).splitlines() if line.endswith(MARK)]
    assert [line[1:] for line in diff(name) if line.startswith("+")] == marked
    assert 2 <= len(marked) <= LINES.get(name, 3)
    assert len(source(name).splitlines()) <= 60


@pytest.mark.parametrize("name", COMPARED)
def test_the_diff_stands_in_the_example(name: str) -> None:
    program = [line.removesuffix(MARK) for line in source(name).splitlines()]
    for hunk in "\n".join(diff(name)).split("\n@@\n"):
        new = [line[1:] for line in hunk.splitlines() if not line.startswith("-")]
        assert any(program[at : at + len(new)] == new for at in range(len(program))), hunk


@pytest.mark.parametrize("name", COMPARED)
def test_without_the_added_lines_it_is_a_loop_that_needs_nothing_of_ours(name: str) -> None:
    plain = plain_loop(source(name), diff(name))
    compile(plain, name, "exec")
    undefined = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--quiet", "-"]
    found = subprocess.run(undefined, input=plain, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")
    rest = plain.partition('"""\n\n')[2]  # after the docstring
    shows_the_run = "from noether_core.cli import app"
    assert re.findall(r".*noether.*", rest) == [shows_the_run]


# ------------------------------------------------------------------ the examples


def rows(shown: str) -> list[tuple[str, str, str]]:
    """Return each row's key, points and last update: what does not depend on the machine."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    return [(row[0], row[1], row[-1]) for row in cells]


@pytest.mark.filterwarnings("default")  # the frameworks' own; an example runs as a user runs it
@pytest.mark.parametrize("name", SHOWN)
def test_the_example_shows_what_its_page_shows(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["example", str(tmp_path / "run")])
    monkeypatch.delenv("COLUMNS", raising=False)
    runpy.run_path(str(ROOT / "examples" / f"{example(name)}.py"), run_name="__main__")
    text = blocks(name, "text")[0]
    assert text.startswith(f"runs/{example(name)}\n")
    assert rows(text) == rows(capsys.readouterr().out) != []
    for key, points in read_run(tmp_path / "run").series.items():
        if key.startswith("loss/"):
            assert points.value[-1] < points.value[0]


@pytest.mark.parametrize("name", SHOWN)
def test_the_picture_has_the_curves_that_the_page_shows(name: str) -> None:
    assert f"![Its curves]({name}.svg)" in PAGES[name]
    picture = ET.parse(ROOT / "docs" / f"{name}.svg")
    drawn = {"".join(each.itertext()) for each in picture.iter("{http://www.w3.org/2000/svg}text")}
    assert {key for key, _, at in rows(blocks(name, "text")[0]) if at.startswith("update")} <= drawn


# ------------------------------------------------------------------ the rest of the pages


def test_the_index_has_every_page() -> None:
    assert set(re.findall(r"\]\((\w+)\.md\)", PAGES["README"])) == set(PAGES) - {"README"}


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_points_to_is_there(name: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)", PAGES[name]):
        assert target.startswith("https://") or (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"`((?:tests|parity_tests|examples|noether_\w+)/[\w/]+\.\w+)`", PAGES[name]):
        assert (ROOT / path).exists(), path


def test_the_walk_names_functions_that_are_there() -> None:
    rows = re.findall(r"^\| (`noether_.*?) \| (.*?) \|", PAGES["walk_of_a_value"], re.MULTILINE)
    assert len(rows) > 15
    for files, functions in rows:
        sources = "".join((ROOT / path).read_text(encoding="utf-8") for path in re.findall(r"`(.+?)`", files))
        for function in re.findall(r"`(.+?)`", functions):
            assert re.search(rf"(def|class) {function}\b", sources), (files, function)


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(name, "python")])
def test_the_lines_of_python_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run them beside each of the page's YAML blocks, as `callbacks.yaml`; a text block right after one is what it prints."""
    for number, config in enumerate(blocks(name, "yaml") or [""]):
        directory = tmp_path / str(number)
        directory.mkdir()
        monkeypatch.chdir(directory)
        Path("callbacks.yaml").write_text(config, encoding="utf-8")
        for block, _, printed in re.findall(PRINTS, PAGES[name], re.DOTALL):
            capsys.readouterr()
            exec(compile(block, f"docs/{name}.md", "exec"), {})
            assert not printed or capsys.readouterr().out == printed
        assert list(directory.glob("runs/*/starts/1.json")) or "Run(" not in PAGES[name]


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(name, "yaml")])
def test_the_yaml_loads(name: str, tmp_path: Path) -> None:
    for block in blocks(name, "yaml"):
        assert yaml.safe_load(block)
        (tmp_path / "callbacks.yaml").write_text(block, encoding="utf-8")
        assert load_callbacks(tmp_path / "callbacks.yaml")
