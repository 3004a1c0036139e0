"""Show runs in the terminal: nothing is broken at any width; folders, several runs, and a run that is being written."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from contrast import contrast
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.inspect.fitted import Column, Course, Fitted
from noether_core.inspect.follow import screen
from noether_core.inspect.growing import GrowingRun, GrowingSeries
from noether_core.inspect.look import look
from noether_core.inspect.newest import newest_of
from noether_core.inspect.picture import save_svg
from noether_core.inspect.show import show_run
from noether_core.text import sparkline
from noether_torch import Run

KEYS = ("loss/U50", "encoder.layers.0.attention.query.weight/norm/mean/U50", "accuracy/top5/eval/E1", "lr")
VALUES = (0.000623947, 94.77, -1.23457e-12, 123456789.0, 0.1)


def printed(renderable: RenderableType, width: int = 80) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(renderable, crop=False)
    return file.getvalue()


class Log:
    """Write a run's log entry by entry."""

    def __init__(self, path: Path) -> None:
        self.counter = UpdateCounter()
        self.writer = LogWriter(path, update_counter=self.counter)

    def add(self, **values: Any) -> None:
        self.counter.next_update()
        for key, value in values.items():
            (self.writer.add_nonscalar if isinstance(value, str) else self.writer.add_scalar)(key, value)
        self.writer.flush()
        self.writer.disk.wait()


def make(path: Path, entries: Sequence[dict[str, Any]]) -> Path:
    log = Log(path)
    for entry in entries:
        log.add(**entry)
    log.writer.close()
    return path


# ------------------------------------------------------------------ widths


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_names_and_numbers_are_whole_at_every_width(width: int, tmp_path: Path) -> None:
    run = make(tmp_path / "run", [dict.fromkeys(KEYS, value) for value in VALUES])
    text = printed(look([run]), width)
    for key in KEYS:
        assert key in text
    assert text.count("0.1") >= len(KEYS)  # the last value is always there
    numbers = re.findall(r"(?<![\w./-])-?\d[\d.e+-]*", re.sub("|".join(map(re.escape, (*KEYS, str(run)))), "", text))
    assert set(numbers) <= {f"{value:.6g}" for value in VALUES} | {"5"}
    assert all(len(line) <= width for line in text.splitlines() if str(run) not in line and KEYS[1] not in line)


@given(
    st.lists(st.text("abc/._0123456789", min_size=1, max_size=70), min_size=1, max_size=6, unique=True),
    st.integers(30, 170),
)
@settings(max_examples=60)
def test_any_names_stay_whole(names: list[str], width: int) -> None:
    columns = (Column("last"), Column("first", 1), Column("course", 2, is_left=True))
    groups = [(name, [["-1.23457e-12", "9.99999e+20", Course([1.0, 2.0, 3.0] * 9)]]) for name in names]
    text = printed(Fitted("key", columns, groups), width)
    lines = text.splitlines()
    assert text.count("-1.23457e-12") == len(names)
    assert all(any(name in line for line in lines) for name in names)
    if max(map(len, names)) <= width:
        assert all(len(line) <= width for line in lines)


def test_columns_go_by_rank_and_the_course_shrinks_first() -> None:
    columns = (Column("last"), Column("first", 1), Column("course", 2, is_left=True))
    table = Fitted("key", columns, [("loss", [["0.000623", "94.7712", Course([float(k) for k in range(40)])]])])
    wide, narrow, least = (printed(table, width) for width in (120, 40, 24))
    assert sparkline(range(40), 24) in wide
    assert "first" in narrow
    assert sparkline(range(40), 24) not in narrow
    assert "first" not in least
    assert "0.000623" in least


def test_a_value_of_an_interval_that_was_not_over_is_provisional(tmp_path: Path) -> None:
    with Run(tmp_path / "run", "loss", every=10) as run:
        for step in range(47):
            run.step({"loss": float(step)})
    read = read_run(tmp_path / "run")
    assert read.series["loss/U10"].provisional.tolist() == [4]
    assert "update 47, provisional" in printed(show_run(read))
    with Run(tmp_path / "whole", "loss", every=10) as run:
        for step in range(40):
            run.step({"loss": float(step)})
    assert not len(read_run(tmp_path / "whole").series["loss/U10"].provisional)


def test_an_int_that_is_wider_than_the_terminal_is_whole(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [{"a": 10**100}])
    assert str(10**100) in printed(look([run]), 60)


# ------------------------------------------------------------------ folders and several runs


def test_a_folder_lists_its_runs_the_newest_first(tmp_path: Path) -> None:
    for name, loss in (("old", 0.5), ("deep/er/new", 0.25)):
        make(tmp_path / name, [{"note": 1.0, "train/loss": loss}] * 3)
    os.utime(tmp_path / "old" / "metrics" / "1.jsonl", (0, 0))
    (tmp_path / "none").mkdir()
    text = printed(look([tmp_path]), 120)
    first, second = [line for line in text.splitlines() if "train/loss" in line]
    assert all(word in first for word in ("deep/er/new", "ended", "3", "0.25"))
    assert all(word in second for word in ("old", "0.5", " d "))
    assert "none" not in text.replace(str(tmp_path), "")


def test_states_of_runs(tmp_path: Path) -> None:
    with Run(tmp_path / "run", [{"every_n_updates": 1, "keys": ["loss"]}]) as run:
        assert newest_of(tmp_path / "run").state == "running"
        run.step({"loss": 1.0})
    assert newest_of(tmp_path / "run").state == "ended"
    with (
        contextlib.suppress(ZeroDivisionError),
        Run(tmp_path / "bad", [{"every_n_updates": 1, "keys": ["loss"]}]) as run,
    ):
        run.step({"loss": 1.0})
        raise ZeroDivisionError
    assert newest_of(tmp_path / "bad").state == "failed"
    (tmp_path / "none" / "metrics").mkdir(parents=True)
    assert newest_of(tmp_path / "none").state == "empty"


def test_a_killed_run_is_told_from_one_that_ended(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from noether_core import LogWriter, UpdateCounter; counter = UpdateCounter();"
        "writer = LogWriter(sys.argv[1], update_counter=counter); counter.next_update(); writer.add_scalar('loss', 1.0);"
        "writer.flush(); writer.disk.wait(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=False)
    assert newest_of(tmp_path / "run").state == "killed"
    assert newest_of(tmp_path / "run").main_value() == ("loss", 1.0)


def test_the_end_of_a_log_is_read_whatever_is_in_it(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [{"loss": 2.0}, {"loss": 1.0}])
    file = run / "metrics" / "1.jsonl"
    file.write_bytes(file.read_bytes() + b'{"torn')
    assert newest_of(run).entry["loss"] == 1.0
    file.write_bytes(b"\0" * 200_000 + b"\n" + file.read_bytes().splitlines(keepends=True)[0])
    assert newest_of(run).entry == {"epoch": 0, "update": 1, "sample": 0, "loss": 2.0}


def test_two_runs_stand_side_by_side(tmp_path: Path) -> None:
    a = make(tmp_path / "a", [{"loss": 2.0, "same": 1.0}, {"loss": 1.0, "same": 1.0}])
    b = make(tmp_path / "b", [{"loss": 2.0, "same": 1.0}, {"loss": 1.5, "same": 1.0, "only": 3}])
    lines = printed(look([a, b]), 120).splitlines()
    table = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [row[:2] for row in table] == [["loss", "a"], ["", "b"], ["same", "a"], ["", "b"], ["only", "b"]]
    assert [row[5] for row in table] == ["", "0.33", "", "=", ""]


def test_keys_are_chosen_by_words(tmp_path: Path) -> None:
    run = make(tmp_path / "run", [{"train/loss": 1.0, "eval/loss": 2.0, "lr": 0.1}])
    text = printed(look([run], ["LOSS eval", "lr"]))
    assert ("eval/loss" in text, "lr" in text, "train/loss" in text) == (True, True, False)


# ------------------------------------------------------------------ a run that is being written


def test_a_run_that_grows_is_read_by_its_new_lines(tmp_path: Path) -> None:
    run, path = GrowingRun(tmp_path / "run"), tmp_path / "run"
    assert run.poll() == []
    log = Log(path)
    log.add(loss=4.0)
    assert run.poll() is None
    assert run.poll() == []
    log.add(loss=2.0, note="x")
    assert run.poll() == [{"epoch": 0, "update": 2, "sample": 0, "loss": 2.0, "note": "x"}]
    loss = run.series["loss"]
    assert (loss.count, loss.first, loss.last, loss.low, loss.high, loss.update) == (2, 4.0, 2.0, 2.0, 4.0, 2)
    file = path / "metrics" / "1.jsonl"
    log.add(loss=8.0)
    log.writer.close()
    whole = file.read_bytes()
    assert run.poll() != []
    with file.open("ab") as opened:  # a line that comes in two parts
        line = whole.splitlines(keepends=True)[-1]
        opened.write(line[:20])
        opened.flush()
        assert run.poll() == []
        opened.write(line[20:])
    assert run.poll() == []  # of an update that is known
    assert (loss.count, loss.last) == (3, 8.0)


def test_a_start_that_goes_back_takes_what_came_after(tmp_path: Path) -> None:
    make(tmp_path / "run", [{"loss": float(k)} for k in range(5)])
    run = GrowingRun(tmp_path / "run")
    run.poll()
    assert run.series["loss"].count == 5
    make(tmp_path / "run", [{"loss": 9.0}])
    assert run.poll() is None
    assert (run.starts, run.series["loss"].count, run.iteration[1]) == (2, 1, 1)
    assert list(read_run(tmp_path / "run").series["loss"].value) == [9.0]


def test_a_run_that_is_taken_away_and_made_anew_is_followed(tmp_path: Path) -> None:
    run = GrowingRun(make(tmp_path / "run", [{"loss": 1.0}]))
    run.poll()
    (tmp_path / "run").rename(tmp_path / "away")
    assert run.poll() is None
    assert run.series == {}
    make(tmp_path / "run", [{"acc": 0.5}])
    assert run.poll() is None
    assert list(run.series) == ["acc"]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3000))
@settings(max_examples=20, deadline=None)
def test_a_course_keeps_its_mean_and_a_bound(values: list[float]) -> None:
    series = GrowingSeries()
    for update, value in enumerate(values):
        series.add(update, value)
    assert (series.count, series.low, series.high) == (len(values), min(values), max(values))
    assert len(series.course) <= 1025
    if len(values) <= 1024:
        assert list(series.course)[: len(values) - 1] == values[:-1]


def screened(run: GrowingRun, width: int, height: int, keys: Sequence[str] = ()) -> list[str]:
    """Return the lines of the screen of a run that is followed, in a terminal of this size."""
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    return [
        "".join(part.text for part in line) for line in console.render_lines(screen(run, "running", 2.5, keys, console))
    ]


@pytest.mark.parametrize(
    "name", ["k{:02}", "encoder.layers.{:02}.attention.query.weight/norm/mean/" + "x" * 80], ids=["short", "long"]
)
@pytest.mark.parametrize(("width", "height"), [(100, 20), (80, 24), (40, 12), (30, 50), (200, 8), (20, 5)])
def test_the_screen_has_the_keys_that_fit_and_says_how_many_do_not(
    name: str, width: int, height: int, tmp_path: Path
) -> None:
    run = GrowingRun(make(tmp_path / "run", [{name.format(k): 1.0 for k in range(100)}]))
    run.poll()
    run.path = Path("run")
    lines = screened(run, width, height)
    text = "".join(line.rstrip() for line in lines)
    shown = [k for k in range(100) if name.format(k) in text]
    assert shown == list(range(len(shown)))
    assert shown
    assert f"{100 - len(shown)} more keys:" in text
    one = 1 + -(-len(name) // width)  # lines of one more key, where each has its own
    assert height - one - 1 <= len(lines) <= height or len(shown) == 1


def test_one_key_that_is_left_out_is_one(tmp_path: Path) -> None:
    run = GrowingRun(make(tmp_path / "run", [{f"key{k}/{'x' * 50}": 1.0 for k in range(10)}]))
    run.poll()
    run.path = Path("run")
    assert len(screened(run, 80, 23)) == 23  # two lines above, a heading, and two for each of them
    assert len(screened(run, 80, 22)) == 22
    assert screened(run, 80, 22)[-1].startswith("1 more key: ")


@contextlib.contextmanager
def terminal(*arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Run the command in a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    resize(theirs, 24, 80)
    environment = {**os.environ, "TERM": "xterm-256color"}
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


COMMAND = "from noether_parity import main; main()"


def seen(terminal: int, words: str, patience: float = 60) -> str:
    """Read until the terminal has shown these words."""
    found, end = "", time.monotonic() + patience
    while words not in found:
        assert time.monotonic() < end, found
        if select.select([terminal], [], [], 1)[0]:
            found += os.read(terminal, 2**16).decode("utf-8", "replace")
    return found


def test_a_run_is_followed_in_a_terminal_from_before_it_is_there_until_ctrl_c(tmp_path: Path) -> None:
    with terminal("show", str(tmp_path / "run"), "--follow") as (process, ours):
        seen(ours, "is not there yet: waiting")
        log = Log(tmp_path / "run")
        log.add(loss=0.53125)
        seen(ours, "0.53125")
        log.add(loss=0.28125)
        seen(ours, "0.28125")
        log.writer.close()
        make(tmp_path / "run", [{"loss": 0.65625}])
        assert "2 starts" in seen(ours, "0.65625")
        used = _cpu(process.pid)
        time.sleep(1.5)
        assert _cpu(process.pid) - used < 0.75  # it sleeps between looks
        process.send_signal(signal.SIGINT)
        end = seen(ours, "└")
        assert process.wait(20) == 130
        assert "Traceback" not in end
        after = end.rpartition("\x1b[?1049l")[2]  # its own screen is gone, and what was on it stays
        assert "0.65625" in after


def test_a_terminal_that_changes_its_size_is_filled_again(tmp_path: Path) -> None:
    make(tmp_path / "run", [{f"layer{k:02}/norm": float(k) for k in range(40)}])
    with terminal("show", str(tmp_path / "run"), "--follow") as (process, ours):
        assert "layer39" not in seen(ours, "more keys: choose")
        resize(ours, 60, 120)
        assert "layer00" in seen(ours, "layer39/norm")
        resize(ours, 10, 30)
        assert "layer39" not in seen(ours, "more keys:").rpartition("\x1b[H")[2]
        assert process.poll() is None


def resize(terminal: int, rows: int, columns: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_where_the_output_is_no_terminal_each_entry_is_a_line(tmp_path: Path) -> None:
    log = Log(tmp_path / "run")
    log.add(loss=0.5, lr=0.1)
    with subprocess.Popen(
        [sys.executable, "-u", "-c", COMMAND, "show", str(tmp_path / "run"), "--follow", "-k", "loss"],
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "update 1: loss 0.5\n"
            log.add(loss=0.25, lr=0.1)
            assert process.stdout.readline() == "update 2: loss 0.25\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()


# ------------------------------------------------------------------ pictures and notebooks


def test_every_colour_of_a_picture_is_read_well(tmp_path: Path) -> None:
    names = ("red", "green", "yellow", "blue", "magenta", "cyan", "white")
    styles = ["", "dim", *names, *(f"bright_{name}" for name in names)]
    lines = [Text(f"word{place}", style=style) for place, style in enumerate(styles)]
    save_svg(Group(*lines), tmp_path / "a.svg", "a")
    text = (tmp_path / "a.svg").read_text(encoding="utf-8")
    (ground,) = re.findall(r'<rect fill="(#[0-9a-f]{6})"', text)
    colours = set(re.findall(r"r\d+ \{ fill: (#[0-9a-f]{6})", text))
    assert len(colours) >= len(styles) - 2
    for colour in colours:
        assert contrast(colour, ground) >= 4.5, colour


def test_borders_in_a_picture_are_lines_that_meet(tmp_path: Path) -> None:
    table = Table("key", "value")
    for row in range(3):
        table.add_row(f"row{row}", "█▃▁")
    save_svg(table, tmp_path / "table.svg", "a table")
    tree = ET.parse(tmp_path / "table.svg")
    text = "".join("".join(each.itertext()) for each in tree.iter("{http://www.w3.org/2000/svg}text"))
    assert not re.search(r"[\u2500-\u257f]", text)
    assert "█▃▁" in text
    assert "row2" in text
    drawn = "".join(each.get("d", "") for each in tree.iter("{http://www.w3.org/2000/svg}path"))
    lines = {(float(x), float(y), float(end)) for x, y, end in re.findall(r"M([\d.]+) ([\d.]+)V([\d.]+)", drawn)}
    body = [each for each in lines if each[2] - each[1] > 3 * 24]
    assert len({x for x, _, _ in body}) == 3  # each border is one line from row to row


def test_a_run_has_a_short_repr_and_a_picture_for_notebooks(tmp_path: Path) -> None:
    key = "<script>alert(1)</script>"
    nan = float("nan")
    run = read_run(
        make(tmp_path / "run", [{key: value, "a" * 90: "<b>text</b>"} for value in (1.0, 3.0, nan, 2.0, 5.0)])
    )
    assert repr(run) == f"<RunReader {str(tmp_path / 'run')!r}: 2 keys, 5 entries, update 5>"
    html = run._repr_html_()
    assert "<script" not in html
    assert "<b>text" not in html
    assert "&lt;script&gt;" in html
    assert not re.search(r"href|src=|url\(|@import| on\w+=", html)
    root = ET.fromstring(html)
    line, odd = [each.get("d", "") for each in root.iter("path")][:2]
    assert (line.count("M"), line.count("L"), odd.count("M")) == (2, 2, 1)  # a gap, with a mark
    assert len(html) < 4000


def test_a_run_that_is_open_has_them_too(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [{"every_n_updates": 1, "keys": ["loss"]}])
    assert repr(run) == f"<noether_torch.Run {str(tmp_path / 'run')!r}: new, update 0>"
    assert "<svg" not in run._repr_html_()
    with run:
        for step in range(3):
            run.step({"loss": 1.0 / (step + 1)})
        run.log_writer.disk.wait()
        assert "training, update 3, sample 3" in repr(run)
        assert "loss/U1" in run._repr_html_()
    assert "<svg" in run._repr_html_()
