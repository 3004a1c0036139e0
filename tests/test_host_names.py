"""A machine may be called anything: bytes that are no text, escape sequences, several lines."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, numpy, noether_torch
from noether_core import NoetherError, read_capsule, read_run
from noether_core.parity.check import check_run

path = sys.argv[1]
try:
    with noether_torch.Run(path, [{"every_n_updates": 1, "keys": ["loss"], "save_output": True}]) as run:
        run.step({"loss": 1.0})
        try:
            noether_torch.Run(path, ["loss"]).start()
        except NoetherError as error:
            print(ascii(str(error)))
        raise KeyError("its own")
except KeyError:
    pass
print(read_run(path).entries, read_run(path).problems, ascii(check_run(path).starts))
print(*(ascii(read_capsule(file).about["host"]) for file in run.path.glob("capsules/*")))
"""


def can_be_renamed() -> bool:
    """Tell whether a process of ours may have a host name of its own."""
    command = ["unshare", "--uts", "sh", "-c", "echo one > /proc/sys/kernel/hostname"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.skipif(not can_be_renamed(), reason="needs the right to rename a namespace of its own")
@pytest.mark.parametrize("name", [b"\xff\xfe", b"\x1b[31mred", b"a\xe9\xcc\x81"])
def test_a_run_on_a_machine_of_any_name_is_whole(name: bytes, tmp_path: Path) -> None:
    rename = 'cat > /proc/sys/kernel/hostname; exec "$@"'
    command = ["unshare", "--uts", "sh", "-c", rename, "sh", sys.executable, "-c", PROGRAM, str(tmp_path / "run")]
    done = subprocess.run(command, input=name, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-2000:]
    assert b"is being written by a run of this process" in done.stdout
    assert b"[{'epoch': 0, 'update': 1, 'sample': 1, 'loss/U1': 1.0}] []" in done.stdout
    assert b"\x1b" not in done.stdout
