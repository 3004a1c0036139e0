"""However a program ends (or forks), its trackers get everything, and the processes of the tools end too."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tool_readers import trackio_runs

from noether_core import NoetherError
from noether_core.emit.trackers import make_trackers

ENDINGS = {
    "close": ("writer.close()", 0),
    "the end of the program": ("pass", 0),
    "sys.exit": ("sys.exit(3)", 3),
    "an exception": ("raise ValueError('the loop failed')", 1),
    "a fork that exits first": (
        """
child = os.fork()
if child == 0:
    writer.add_scalar("child", 1.0)
    sys.exit(0)
begin = time.monotonic()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert time.monotonic() - begin < 5
""",
        0,
    ),
}
PROGRAM = """
import os, sys, time
from pathlib import Path
from noether_core import LogWriter, UpdateCounter

class Slow:
    def __init__(self):
        self.file = open(sys.argv[1] + "/slow", "a")
    def log(self, entry):
        time.sleep(0.01)
        self.file.write(f"{entry['update']}\\n")
    def close(self):
        self.file.write("closed\\n")
        self.file.close()

counter = UpdateCounter()
writer = LogWriter(sys.argv[1], update_counter=counter, trackers=[Slow()])
for _ in range(50):
    counter.next_update()
    writer.add_scalar("loss", 1.0)
    writer.flush()
"""


@pytest.mark.parametrize("ending", ENDINGS)
def test_however_a_program_ends_the_tracker_gets_everything(tmp_path: Path, ending: str) -> None:
    script, code = ENDINGS[ending]
    command = [sys.executable, "-W", "error", "-c", PROGRAM + script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("ValueError: the loop failed" in done.stderr) == (code == 1)
    assert "Warning" not in done.stderr
    assert (tmp_path / "slow").read_text().splitlines() == [*(str(n) for n in range(1, 51)), "closed"]


WITH_TOOL = PROGRAM.replace("[Slow()]", "make_trackers(['trackio'], Path(sys.argv[1]))").replace(
    "from pathlib", "from noether_core.emit.trackers import make_trackers\nfrom pathlib"
)

FORKED = PROGRAM.replace("[Slow()]", "[Slow(), inline]").replace(
    "counter =",
    """
class Inline:
    inline = True
    path = sys.argv[1] + "/inline"
    def log(self, entry):
        pass
    def close(self):
        with open(self.path, "a") as file:
            file.write("closed")

inline = Inline()
counter =""",
)


def test_a_forked_process_gives_nothing_to_the_trackers_and_closes_none(tmp_path: Path) -> None:
    script = """
child = os.fork()
if child == 0:
    counter.next_update()
    writer.add_scalar("child", 1.0)
    writer.close()
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert not os.path.exists(inline.path)
"""
    command = [sys.executable, "-W", "error", "-c", FORKED + script, str(tmp_path)]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "slow").read_text().splitlines() == [*(str(n) for n in range(1, 51)), "closed"]
    assert (tmp_path / "inline").read_text() == "closed"


INTERRUPTED = """
time.sleep(0.1)  # the tool's process has begun, and takes longer than that to be ready
try:
    os.killpg(0, 2)
    time.sleep(10)
except KeyboardInterrupt:
    writer.close(60)
"""
OUTLIVED_BY_A_FORK = """
time.sleep(0.5)  # the tool's process is running, and the pipe to it is open
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
begin = time.monotonic()
writer.close(60)
os.kill(child, 9)
assert time.monotonic() - begin < 30
"""


@pytest.mark.parametrize("ending", [INTERRUPTED, OUTLIVED_BY_A_FORK], ids=["Ctrl-C", "a fork that holds the pipe"])
def test_the_tools_process_ends_when_it_is_told_to_and_only_then(tmp_path: Path, ending: str) -> None:
    command = [sys.executable, "-W", "error", "-c", WITH_TOOL + ending, str(tmp_path)]
    subprocess.run(command, check=True, timeout=100, start_new_session=True)
    assert trackio_runs(tmp_path / "trackio")[tmp_path.name]["loss"] == [(update, 1.0) for update in range(1, 51)]


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    (tracker,) = make_trackers([{"kind": "wandb", "settings": {"console": "no_such_setting"}}], tmp_path)
    with pytest.raises(NoetherError, match=r"process of WandbTracker.* ended with code 1: .*no_such_setting"):  # noqa: PT012
        tracker.log({"epoch": 0, "update": 1, "sample": 8, "loss": 0.5})
        tracker.close()


def test_the_tools_process_outlives_a_kill_and_writes_what_it_was_given(tmp_path: Path) -> None:
    script = WITH_TOOL + "time.sleep(1); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False, timeout=60).returncode == -9
    query = (
        "import sys; from trackio.sqlite_storage import SQLiteStorage as s; print(s.get_max_steps_for_runs('noether'))"
    )
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    for _ in range(30):
        done = subprocess.run(
            [sys.executable, "-c", query], capture_output=True, text=True, check=False, env=environment
        )
        if ": 50}" in done.stdout:
            break
        time.sleep(0.5)
    assert ": 50}" in done.stdout
