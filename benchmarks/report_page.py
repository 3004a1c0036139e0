"""Measure a page of 20 runs of 50 keys and 10,000 updates: the time to write it, its size, and how smoothly it scrolls.

python -m benchmarks.report_page [RUNS KEYS UPDATES]

It scrolls in Chromium, by a step in each frame from the first card to the last, through charts that are drawn as they come into
view. A dropped frame is one of 60 in a second that could not be shown because the one before it took too long. What the machine
itself drops, whatever is on the page, is measured on a page of lines of text.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from noether_core import LogWriter, UpdateCounter
from noether_core.report import write_report

ROOT = Path(__file__).parents[1]
FRAME = 1000 / 60  # milliseconds
PIXELS = 40  # that the page moves in a frame: 2,400 in a second
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


def draw(folder: Path) -> None:
    """Write the page of the runs in a folder, in a process of its own, and say what it took."""
    runs = sorted(folder.glob("run*"))
    begun, busy = time.perf_counter(), time.process_time()
    page = write_report(runs, folder / "report.html")
    seconds, of_core = time.perf_counter() - begun, time.process_time() - busy
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = page.stat().st_size / 1e6
    print(f"written in {seconds:.1f} s, of which one core worked {of_core:.1f} s; {memory:.0f} MB of memory")
    print(f"page: {size:.1f} MB", flush=True)


def dropped(times: list[float]) -> tuple[int, int]:
    """Return how many frames could not be shown, and how many there should have been, of the times of those that were.

    >>> dropped([0.0, 16.7, 33.3, 83.3])
    (2, 5)
    """
    gaps = [max(1, round(gap / FRAME)) for gap in np.diff(times)]
    return sum(gaps) - len(gaps), sum(gaps)


def scroll(page: Path) -> None:
    """Open a page in Chromium, scroll through it at each width, and say how many frames were dropped."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import Browser, find_browser

    program = find_browser()
    if program is None:
        raise SystemExit("there is no Chromium here to scroll in: apt-get install chromium")
    with Browser(program) as browser:
        plain = page.with_name("plain.html")
        plain.write_text(f"<!doctype html><title>plain</title>{'<p>text' * 400}", encoding="utf-8")
        for name, width, height in (("desktop", 1280, 900), ("phone", 390, 844)):
            for what, path in (("text alone", plain), ("the page", page)):
                begun = time.perf_counter()
                browser.open(path, width, height)
                opened = time.perf_counter() - begun
                found: dict[str, Any] = browser.run(SCROLL % PIXELS)
                lost, all_frames = dropped(found["times"])
                print(
                    f"{name}, {width} wide, {what}: {opened:.1f} s to open; {found['height']:,} pixels in {all_frames} frames,"
                    f" {lost} dropped ({lost / all_frames:.0%}); longest task {max(found['tasks'], default=0.0):.0f} ms"
                )
        complaints = [json.loads(each)["method"] for each in browser.complaints()]
    if complaints:
        raise SystemExit(f"the page complained: {complaints}")


def main(runs: int, keys: int, updates: int) -> None:
    """Write the runs, draw them, and scroll through the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for at in range(runs):
            write(folder / f"run{at:02}", keys, updates, at)
        print(f"{runs} runs, {keys} keys, {updates:,} updates", flush=True)
        subprocess.run([sys.executable, "-m", "benchmarks.report_page", "draw", name], check=True)
        scroll(folder / "report.html")


if __name__ == "__main__":
    if sys.argv[1:2] == ["draw"]:
        draw(Path(sys.argv[2]))
    else:
        given = [int(each) for each in sys.argv[1:4]]
        main(*(given if len(given) == 3 else (20, 50, 10_000)))
