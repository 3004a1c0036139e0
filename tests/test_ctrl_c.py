"""Press Ctrl-C at any time of the command, also while its modules are imported: no traceback, and exit code 130."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Python imports this by itself when it begins: press Ctrl-C when a module begins to be imported
PRESSED = """
import importlib.abc, os, signal, sys
{first}
class Press(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {pressed!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
"""
SCRIPT = "import sys; from noether_parity import main; sys.argv[0] = 'noether-parity'; main()"
STARTS = {
    "noether-parity": ["-c", SCRIPT],
    "-m noether_parity": ["-m", "noether_parity"],
    "-m noether_core": ["-m", "noether_core"],
    "-Bmnoether_core": ["-Bmnoether_core"],
}
LATER = ["noether_core.errors", "numpy", "pydantic", "noether_core.report"]  # than noether_core itself


def called(*arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True, text=True, check=False, timeout=120, cwd=ROOT, env=environment,
    )  # fmt: skip


def pressed(start: str, module: str, directory: Path, first: str = "") -> subprocess.CompletedProcess[str]:
    (directory / "sitecustomize.py").write_text(PRESSED.format(pressed=module, first=first), encoding="utf-8")
    return called(*STARTS[start], "--version", path=directory)


@pytest.mark.parametrize(
    ("start", "module"),
    [
        *((start, module) for start in STARTS for module in LATER),
        ("noether-parity", "noether_core"),
        ("-m noether_parity", "noether_core"),
    ],
)
def test_ctrl_c_during_imports_leaves_no_traceback(start: str, module: str, tmp_path: Path) -> None:
    done = pressed(start, module, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize("start", STARTS)
def test_without_ctrl_c_it_runs(start: str, tmp_path: Path) -> None:
    done = pressed(start, "no.such.module", tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("noether-callbacks ")


@pytest.mark.parametrize("start", ["noether-parity", "-m noether_core"])
def test_where_ctrl_c_is_ignored_it_stays_so(start: str, tmp_path: Path) -> None:
    ignoring = "signal.signal(signal.SIGINT, signal.SIG_IGN)"
    assert pressed(start, "noether_core.errors", tmp_path, ignoring).returncode == 0


@pytest.mark.parametrize("package", ["training", "my_noether_core"])
def test_a_program_that_imports_the_core_keeps_its_ctrl_c(package: str, tmp_path: Path) -> None:
    (tmp_path / package).mkdir()
    code = "import signal, noether_core; print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    (tmp_path / package / "__init__.py").write_text(code, encoding="utf-8")
    (tmp_path / package / "__main__.py").write_text("", encoding="utf-8")
    done = called("-m", package, "-m", "noether_core", path=tmp_path)
    assert (done.returncode, done.stdout) == (0, "True\n")


def test_the_entry_imports_little_before_ctrl_c_can_end_it() -> None:
    code = "import sys; before = set(sys.modules); import noether_parity; print(*(set(sys.modules) - before))"
    done = called("-c", code)
    assert {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names) == {"noether_parity"}


@pytest.mark.parametrize("start", ["-m noether_parity", "-m noether_core"])
def test_ctrl_c_during_a_command_is_the_same(start: str, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", *STARTS[start], "show", str(tmp_path), "--follow"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        process.send_signal(signal.SIGINT)
        out, complaint = process.communicate(timeout=60)
    assert (process.returncode, out, complaint) == (130, "", "")
