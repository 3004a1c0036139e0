"""Look at the wheel as a user gets it: what is in it, what it says of itself, and what a strict type checker says of it."""

from __future__ import annotations

import ast
import email
import json
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from wheels import ROOT, behind, built_wheel, called, python_of

import noether_core
import noether_jax
import noether_torch

PACKAGES = {"noether_core": noether_core, "noether_jax": noether_jax, "noether_torch": noether_torch}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PROGRAMS = ROOT / "tests" / "users_program"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def user(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment in which the wheel is installed, and the packages that it needs are."""
    environment = tmp_path_factory.mktemp("user") / "environment"
    venv.create(environment, with_pip=False, symlinks=True)
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", python_of(environment), *install],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    behind(environment)
    return environment


@pytest.fixture
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as opened:
        (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_bytes(opened.read(name))


def test_it_holds_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as opened:
        names = {name for name in opened.namelist() if ".dist-info/" not in name}
        about = {name.partition("/")[2] for name in opened.namelist() if ".dist-info/" in name}
    there = {
        path.relative_to(ROOT).as_posix()
        for package in (*PACKAGES, "noether_parity")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == there
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert {"noether_core/report/assets/page.html", "noether_core/report/assets/uplot/LICENSE"} <= names
    assert about == {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE"}


def test_its_metadata_is_the_projects(metadata: email.message.Message) -> None:
    assert metadata["Name"] == PROJECT["name"]
    assert metadata["Version"] == PROJECT["version"]
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Keywords"].split(",") == sorted(PROJECT["keywords"])
    assert metadata.get_all("Classifier") == sorted(PROJECT["classifiers"])
    assert set(metadata.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])
    needed = {line for line in metadata.get_all("Requires-Dist") or [] if ";" not in line}
    assert needed == set(PROJECT["dependencies"])


def test_each_python_that_a_classifier_names_is_allowed() -> None:
    pythons = [name.rpartition(" ")[2] for name in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", name)]
    assert f">={pythons[0]}" == PROJECT["requires-python"]


def test_what_is_installed_says_its_version(user: Path, tmp_path: Path) -> None:
    lines = "\n".join(f"import {package}; print({package}.__file__, {package}.__version__)" for package in PACKAGES)
    done = called([python_of(user), "-W", "error", "-c", lines], tmp_path)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        path, version = line.split()
        assert Path(path).is_relative_to(user)
        assert version == PROJECT["version"]
    for command in (
        [user / "bin" / "noether-parity", "--version"],
        [python_of(user), "-m", "noether_core", "--version"],
    ):
        assert called(command, tmp_path).stdout == f"noether-callbacks {PROJECT['version']}\n"


def test_the_module_is_the_command(user: Path, tmp_path: Path) -> None:
    by_script = called([user / "bin" / "noether-parity", "export", "--help"], tmp_path, TERM="dumb")
    by_module = called([python_of(user), "-m", "noether_core", "export", "--help"], tmp_path, TERM="dumb")
    assert by_script.returncode == by_module.returncode == 0
    assert "noether-parity export " in by_script.stdout
    assert "python -m noether_core export " in by_module.stdout
    said = [done.stdout.partition(" export ")[2].split() for done in (by_script, by_module)]
    assert said[0] == said[1]


def test_the_shell_completes_commands_and_options(user: Path, tmp_path: Path) -> None:
    """Install the completion in a home of its own, as `--install-completion` does it, and let Bash complete."""
    variables = {"HOME": str(tmp_path), "PATH": f"{user / 'bin'}:/usr/bin:/bin"}
    installed = called(["bash", "-c", "noether-parity --install-completion; exit $?"], tmp_path, **variables)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    assert "noether-parity" in (tmp_path / ".bashrc").read_text(encoding="utf-8")
    asking = """
source ~/.bashrc
complete_it() {
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _noether_parity_completion noether-parity; echo "${COMPREPLY[*]}"
}
complete -p noether-parity > /dev/null || exit 1
complete_it noether-parity ex
complete_it noether-parity export --o
"""
    done = called(["bash", "-c", asking], tmp_path, **variables)
    assert done.returncode == 0, done.stderr
    commands, options = done.stdout.splitlines()
    assert set(commands.split()) == {"explain", "export"}
    assert options.split() == ["--out"]


def test_the_pytest_plugin_is_found(user: Path, tmp_path: Path) -> None:
    script = """
import importlib.metadata as metadata
(point,) = metadata.distribution("noether-callbacks").entry_points.select(group="pytest11")
print(point.load().__file__)
"""
    done = called([python_of(user), "-c", script], tmp_path)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(user)


def imported(program: Path) -> set[str]:
    """Return what a program imports by name from our packages, and what it takes of them by attribute."""
    tree = ast.parse(program.read_text(encoding="utf-8"))
    by_name = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in PACKAGES
        for alias in node.names
    }
    attributes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return by_name | {ast.unparse(node) for node in attributes if ast.unparse(node.value) in PACKAGES}


def test_the_users_programs_use_every_public_name() -> None:
    used = set().union(*map(imported, sorted(PROGRAMS.glob("*.py"))))
    public = {f"{name}.{each}" for name, package in PACKAGES.items() for each in package.__all__}
    assert used == public, sorted(used ^ public)


@pytest.mark.parametrize("program", sorted(PROGRAMS.glob("*.py")), ids=lambda path: path.stem)
def test_the_users_program_runs(program: Path, user: Path, tmp_path: Path) -> None:
    done = called([python_of(user), "-W", "error", program, tmp_path / "run"], tmp_path, JAX_PLATFORMS="cpu")
    assert done.returncode == 0, done.stderr


WRONG = "import noether_core\nnoether_core.Interval('year', 'ten')\nnoether_core.read_run('runs').no_such_thing\n"


def test_a_strict_type_checker_passes_the_users_programs(user: Path, tmp_path: Path) -> None:
    """Check them beside what was installed, with a program that is wrong; and ask for each public name: none may be `Any`."""
    names = [f"{name}.{each}" for name, package in PACKAGES.items() for each in package.__all__]
    asking = [*(f"import {package}" for package in PACKAGES), *(f"reveal_type({name})" for name in names)]
    programs = {"wrong.py": WRONG, "every_name.py": "\n".join(asking)}
    programs |= {program.name: program.read_text(encoding="utf-8") for program in PROGRAMS.glob("*.py")}
    for name, source in programs.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    cache = ROOT / ".mypy_cache" / "users_program"  # what it knows of the frameworks stays there
    options = ["--strict", "--warn-unreachable", "--config-file=", "--output=json", "--cache-dir", str(cache)]
    command = [sys.executable, "-m", "mypy", *options, "--python-executable", str(python_of(user)), *programs]
    done = called(command, tmp_path)
    assert done.returncode == 1, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    errors = [(each["file"], each["line"], each["code"]) for each in found if each["severity"] == "error"]
    expected = [("wrong.py", 2, "arg-type"), ("wrong.py", 2, "arg-type"), ("wrong.py", 3, "attr-defined")]
    assert errors == expected, done.stdout
    revealed = [each["message"] for each in found if each["file"] == "every_name.py"]
    assert len(revealed) == len(names)
    assert not [message for message in revealed if message == 'Revealed type is "Any"'], revealed
