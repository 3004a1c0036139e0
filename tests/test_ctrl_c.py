"""Press Ctrl-C at any time of the command, also while its modules are imported: no traceback, and exit code 130."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# press Ctrl-C when a module begins to be imported
PRESSED = """
import importlib.abc, os, signal, sys
pressed = sys.argv[1]
class Press(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == pressed:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
from noether_parity import main
sys.argv = ["noether-parity", "--version"]
main()
"""


def called(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120, cwd=ROOT
    )


@pytest.mark.parametrize("module", ["noether_core", "noether_core.errors", "numpy", "pydantic", "noether_core.report"])
def test_ctrl_c_during_imports_leaves_no_traceback(module: str) -> None:
    done = called("-c", PRESSED, module)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_without_ctrl_c_it_runs() -> None:
    done = called("-c", PRESSED, "no.such.module")
    assert done.returncode == 0
    assert done.stdout.startswith("noether-callbacks ")


def test_where_ctrl_c_is_ignored_it_stays_so() -> None:
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    assert called("-c", ignoring + PRESSED, "noether_core").returncode == 0


def test_the_entry_imports_little_before_ctrl_c_can_end_it() -> None:
    code = "import sys; before = set(sys.modules); import noether_parity; print(*(set(sys.modules) - before))"
    done = called("-c", code)
    assert {name.partition(".")[0] for name in done.stdout.split()} - set(sys.stdlib_module_names) == {"noether_parity"}


def test_ctrl_c_during_a_command_is_the_same(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "noether_parity", "show", str(tmp_path), "--follow"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        process.send_signal(signal.SIGINT)
        out, complaint = process.communicate(timeout=60)
    assert (process.returncode, out, complaint) == (130, "", "")
