"""Measure pages of 20 runs of 50 keys and 10,000 updates: the time to write them, their size, and how smoothly they scroll.

python -m benchmarks.report_page [RUNS KEYS UPDATES]

It writes what `noether-parity report` and `noether-parity plot` write, each in a process of its own, and scrolls both in
Chromium, by a step in each frame from the first card to the last, through charts that are drawn as they come into view. A late
frame is one of 60 in a second that could not be shown because the one before it took too long. What the machine itself is late
with, whatever is on the page, is measured on a page of text of the same height, in turns with each of them. On a busy machine,
how long the processors worked for a frame, in all threads of the browser, says more.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from noether_core import LogWriter, UpdateCounter
from noether_core.report import write_plot, write_report

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import Browser, find_browser

COMMANDS = ("report", "plot")
FRAME = 1000 / 60  # milliseconds
PIXELS = 40  # that the page moves in a frame: 2,400 in a second
TURNS = 5
REST = 1.0  # seconds
PLAIN = "<!doctype html><title>plain</title><style>p {height: 20px; margin: 0}</style>%s"
LINE = 20  # pixels
SCROLL = """
new Promise((done) => {
  const times = [], tasks = [];
  new PerformanceObserver((list) => tasks.push(...list.getEntries().map((task) => task.duration))).observe({type: 'longtask'});
  const step = (time) => {
    times.push(time);
    const before = scrollY;
    scrollBy({top: %d, behavior: 'instant'});
    if (scrollY > before && times.length < 4000) requestAnimationFrame(step);
    else setTimeout(() => done({times, tasks, height: document.documentElement.scrollHeight}), 200);
  };
  requestAnimationFrame(step);
})
"""


def write(path: Path, keys: int, updates: int, seed: int) -> None:
    """Write a run: random walks of some keys."""
    drawn = np.random.default_rng(seed)
    values = np.cumsum(drawn.standard_normal((updates, keys)) * 0.01, axis=0) + 3
    counter = UpdateCounter(updates_per_epoch=100, effective_batch_size=64)
    writer = LogWriter(path, update_counter=counter)
    names = [f"{('loss', 'grad', 'act', 'param')[at % 4]}/layers.{at // 4}/norm" for at in range(keys)]
    for row in values.tolist():
        counter.add_samples(64)
        counter.next_update()
        for name, value in zip(names, row, strict=True):
            writer.add_scalar(name, value)
        writer.flush()
    writer.close()


def draw(command: str, folder: Path) -> None:
    """Write the page of the runs in a folder, in a process of its own, and say what it took."""
    runs = sorted(folder.glob("run*"))
    begun, busy = time.perf_counter(), time.process_time()
    page = {"report": write_report, "plot": write_plot}[command](runs, folder / f"{command}.html")
    seconds, of_core = time.perf_counter() - begun, time.process_time() - busy
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = page.stat().st_size / 1e6
    print(
        f"{command}: {size:.1f} MB, written in {seconds:.1f} s, of which one core worked {of_core:.1f} s;"
        f" {memory:.0f} MB of memory",
        flush=True,
    )


def late(times: list[float]) -> tuple[int, int]:
    """Return how many frames could not be shown in time, and how many there should have been, of the times of those that were.

    >>> late([0.0, 16.7, 33.3, 83.3])
    (2, 5)
    """
    gaps = [max(1, round(gap / FRAME)) for gap in np.diff(times)]
    return sum(gaps) - len(gaps), sum(gaps)


class Scrolled(NamedTuple):
    """Hold what scrolling through a page once was like: pixels, frames, milliseconds, and the seconds that it took to open."""

    tall: int
    late: int
    frames: int
    longest_task: float
    worked: float  # for a frame
    opened: float


def worked() -> float:
    """Return for how many seconds the processors have worked for this process' children."""
    times = [each.cpu_times() for each in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def scrolled(program: str, page: Path, width: int, height: int) -> Scrolled:
    """Open a page in a browser of its own, wait until that has come to rest, and scroll through the page once."""
    with Browser(program) as browser:
        begun = time.perf_counter()
        browser.open(page, width, height)
        opened = time.perf_counter() - begun
        time.sleep(REST)
        before = worked()
        found: dict[str, Any] = browser.run(SCROLL % PIXELS)
        each = (worked() - before) * 1000 / len(found["times"])
        if complaints := browser.complaints():
            raise SystemExit(f"{page.name} complained: {complaints}")
    return Scrolled(found["height"], *late(found["times"]), max(found["tasks"], default=0.0), each, opened)


def scroll(folder: Path) -> None:
    """Scroll through pages at each width, and say how many frames were late."""
    program = find_browser()
    if program is None:
        raise SystemExit("there is no Chromium here to scroll in: apt-get install chromium")
    plain = folder / "plain.html"
    for name, width, height in (("desktop", 1280, 900), ("phone", 390, 844)):
        for command in COMMANDS:
            turns: dict[str, list[Scrolled]] = {"the page": [], "text alone": []}
            for _ in range(TURNS):
                turns["the page"].append(scrolled(program, folder / f"{command}.html", width, height))
                tall = turns["the page"][0].tall
                plain.write_text(PLAIN % ("<p>text" * (tall // LINE)), encoding="utf-8")
                turns["text alone"].append(scrolled(program, plain, width, height))
            opened = min(turn.opened for turn in turns["the page"])
            print(f"{name}, {width} wide, {command}, {tall:,} pixels; {opened:.1f} s to open")
            for what, found in turns.items():
                shares = ", ".join(f"{turn.late / turn.frames:.0%}" for turn in found)
                longest = ", ".join(f"{turn.longest_task:.0f}" for turn in found)
                work = ", ".join(f"{turn.worked:.1f}" for turn in found)
                print(
                    f"  {what}: late frames {shares}; longest task {longest} ms; worked {work} ms a frame", flush=True
                )


def main(runs: int, keys: int, updates: int) -> None:
    """Write the runs, draw them, and scroll through the pages."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for at in range(runs):
            write(folder / f"run{at:02}", keys, updates, at)
        print(f"{runs} runs, {keys} keys, {updates:,} updates", flush=True)
        for command in COMMANDS:
            subprocess.run([sys.executable, "-m", "benchmarks.report_page", "draw", command, name], check=True)
        scroll(folder)


if __name__ == "__main__":
    if sys.argv[1:2] == ["draw"]:
        draw(sys.argv[2], Path(sys.argv[3]))
    else:
        given = [int(each) for each in sys.argv[1:4]]
        main(*(given if len(given) == 3 else (20, 50, 10_000)))
