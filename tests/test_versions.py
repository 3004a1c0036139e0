"""Install the wheel in fresh environments, with the oldest and newest packages and on each Python, and run the README there.

Minutes, and an index: only with `--full`. The oldest versions are in `constraints-oldest.txt`, the newest in `constraints.txt`.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from wheels import ROOT, built_wheel, called, interpreter, python_of, snippets

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = [ROOT / "README.md", ROOT / "docs" / "install.md"]
OLDEST, NEWEST = "constraints-oldest.txt", "constraints.txt"
ENVIRONMENTS = [("3.11", OLDEST), ("3.11", NEWEST), ("3.12", NEWEST), ("3.13", NEWEST)]
CHOSEN = ["jax", "jaxlib", "flax", "optax", "numpy", "pydantic", "rich", "typer", "orjson", "safetensors", "ml-dtypes"]
TORCH = "torch=={}+cpu"  # the build that needs no gigabytes of libraries for GPUs


def pinned(constraints: str) -> dict[str, str]:
    """Return the versions that a constraints file pins, by package."""
    text = (ROOT / constraints).read_text(encoding="utf-8")
    return {name.lower().replace("_", "-"): version for name, version in re.findall(r"(?m)^([\w.-]+)==(\S+)", text)}


def test_the_oldest_versions_are_those_that_the_ranges_begin_with() -> None:
    oldest = pinned(OLDEST)
    lines = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["jax"]]
    for line in lines:
        name, least = re.fullmatch(r"([\w.-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
        assert re.fullmatch(rf"{re.escape(least)}(\.0)*", oldest[name.lower()]), (line, oldest[name.lower()])


def test_the_page_says_what_is_tried() -> None:
    rows = re.findall(r"(?m)^\| ([\w, -]+) \| ([\d.]+) \| ([\d.]+) \|$", PAGES[1].read_text(encoding="utf-8"))
    said = {name.replace("_", "-"): versions for names, *versions in rows for name in names.split(", ")}
    assert said == {package: [pinned(OLDEST)[package], pinned(NEWEST)[package]] for package in CHOSEN}


def test_every_python_that_is_promised_is_tried() -> None:
    promised = {name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)}
    assert {version for version, _ in ENVIRONMENTS} == promised


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))


def installed(python: Path, directory: Path, *packages: str, constraints: str) -> bool:
    """Install packages; tell whether that worked."""
    options = ["install", "--quiet", "--disable-pip-version-check", "--constraint", str(ROOT / constraints)]
    done = called([python, "-m", "pip", *options, *packages], directory)
    print(done.stderr[-2000:])
    return done.returncode == 0


def fresh(version: str, directory: Path) -> Path:
    """Return the interpreter of a new environment of that Python."""
    found = interpreter(version)
    if found is None:
        pytest.skip(f"this machine has no Python {version}")
    made = called([found, "-m", "venv", directory], directory.parent)
    assert made.returncode == 0, made.stderr
    return python_of(directory)


def versions_in(python: Path, directory: Path) -> dict[str, str]:
    """Return what is installed."""
    listed = called([python, "-m", "pip", "list", "--format=freeze"], directory).stdout
    return {name.lower().replace("_", "-"): each for name, each in re.findall(r"(?m)^([\w.-]+)==(\S+)", listed)}


@pytest.mark.slow
@pytest.mark.parametrize(("version", "constraints"), ENVIRONMENTS)
def test_the_readme_runs_where_the_wheel_is_installed(
    version: str, constraints: str, wheel: Path, tmp_path: Path
) -> None:
    python = fresh(version, tmp_path / "environment")
    assert installed(python, tmp_path, f"{wheel}[jax,pandas]", constraints=constraints)
    has_torch = installed(python, tmp_path, TORCH.format(pinned(NEWEST)["torch"]), constraints=constraints)
    there, wanted = versions_in(python, tmp_path), pinned(constraints)
    assert {package: there[package] for package in CHOSEN} == {package: wanted[package] for package in CHOSEN}
    ran = 0
    for page in PAGES:
        for number, snippet in enumerate(snippets(page)):
            if not has_torch and re.search(r"^(from|import) (noether_)?torch\b", snippet, re.MULTILINE):
                continue
            done = called([python, "-W", "error", "-c", snippet], tmp_path, JAX_PLATFORMS="cpu")
            assert done.returncode == 0, f"{page.name}, snippet {number}:\n{snippet}\n{done.stderr}"
            ran += 1
    assert ran >= 2
    run = sorted(tmp_path.glob("runs/*/metrics"))[0].parent
    commands = [["--help"], ["show", run], ["check", run], ["export", run, "--to", "csv"], ["report", run]]
    for command in commands:
        done = called([python, "-m", "noether_core", *command], tmp_path)
        assert done.returncode == 0, f"{command}:\n{done.stderr}"
    assert "run" in called([python.parent / "noether-parity", "--help"], tmp_path).stdout
    print(f"Python {version}, {constraints}: {ran} snippets, torch {there.get('torch', 'not to be had')}")
