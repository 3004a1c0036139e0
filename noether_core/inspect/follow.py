"""Show a run in the terminal while it is written."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from noether_core.inspect.fitted import Cell, Course, Fitted
from noether_core.inspect.growing import GrowingRun, GrowingSeries
from noether_core.inspect.listing import STYLES
from noether_core.inspect.newest import age, newest_of
from noether_core.inspect.show import COLUMNS, line, shown
from noether_core.schedule import UNITS
from noether_core.text import has_words, inert, number

EVERY = 0.5  # seconds between looks
_PACE = 30.0  # seconds over which updates are counted
_STATE = 5.0  # seconds between looks at who writes


def follow(path: Path, console: Console, keys: Sequence[str] = (), every: float = EVERY) -> None:
    """Show a run until Ctrl-C, through its restarts; one that is not there yet is waited for.

    Between looks it sleeps; only new lines are read. It has a screen of its own, as large as the terminal is at each look, and
    leaves the last state behind. Where the output is no terminal, each new entry becomes a line.

    Args:
        path: the run directory.
        console: where to show it.
        keys: words of the keys that are shown; none: all.
        every: seconds between looks.

    Raises:
        KeyboardInterrupt: at Ctrl-C.
    """
    run = GrowingRun(path)
    if console.is_terminal and not console.is_dumb_terminal:
        _show_live(run, console, keys, every)
    else:
        _print_lines(run, console, keys, every)


def _show_live(run: GrowingRun, console: Console, keys: Sequence[str], every: float) -> None:
    pace: deque[tuple[float, int]] = deque()
    state, looked = "", -_STATE
    shown: RenderableType = ""
    try:
        with Live(console=console, auto_refresh=False, screen=True) as live:
            while True:
                if run.poll() is None:
                    pace.clear()
                now = time.monotonic()
                if now - looked >= _STATE or state in ("", "empty"):
                    state, looked = newest_of(run.path).state, now
                pace.append((now, run.iteration[1]))
                while now - pace[0][0] > _PACE:
                    pace.popleft()
                shown = screen(run, state, _speed(pace), keys, console)
                live.update(shown, refresh=True)
                time.sleep(every)
    finally:
        console.print(shown)


def _speed(pace: Sequence[tuple[float, int]]) -> float:
    seconds = pace[-1][0] - pace[0][0]
    return (pace[-1][1] - pace[0][1]) / seconds if seconds > 0 else 0.0


def screen(run: GrowingRun, state: str, speed: float, keys: Sequence[str], console: Console) -> RenderableType:
    """Return what is shown of a run that is followed: the keys that the terminal has lines for, and how many more there are."""
    title = line(str(run.path), "bold")
    if not run.series:
        waiting = "logged nothing yet" if run.path.is_dir() else "is not there yet"
        return Group(title, Text(f"{waiting}: waiting; Ctrl-C leaves", style="italic"))
    found = [key for key in run.series if has_words(key, keys)]
    problems = [line(f"damaged, left out: {run.problems[0]}", "bold red")] if run.problems else []
    above = [title, _about(run, state, speed)]

    def table(most: int) -> Fitted:
        rows = [(inert(key), [_cells(run.series[key])]) for key in found[:most]]
        return Fitted("key", COLUMNS, rows, widest=60, is_folded=True)

    def more(most: int) -> list[Text]:
        left_out = len(found) - most
        words = f"{left_out:,} more {'key' if left_out == 1 else 'keys'}: choose some with --keys"
        return [Text(words, style="dim")] if left_out > 0 else []

    def height(most: int) -> int:
        return table(most).lines(console) + sum(len(words.wrap(console, console.width)) for words in more(most))

    room = console.height - len(console.render_lines(Group(*above, *problems), pad=False))
    most = max(1, bisect_right(range(1, min(len(found), room) + 1), room, key=height))
    return Group(*above, table(most), *more(most), *problems)


def _about(run: GrowingRun, state: str, speed: float) -> Text:
    epoch, update, sample = run.iteration
    words = [
        f"update {update:,}",
        *([f"epoch {epoch:,}"] if epoch else []),
        *([f"sample {sample:,}"] if sample else []),
    ]
    words += [f"{speed:.3g} updates/s"] if speed else []
    words += [f"{run.starts} starts"] if run.starts > 1 else []
    return Text.assemble(
        (state, STYLES.get(state, "")), f"  {' · '.join(words)} · ", (f"{age(run.written)} ago", "dim")
    )


def _cells(series: GrowingSeries) -> list[Cell]:
    extremes: list[Cell] = ["" if each is None else number(each) for each in (series.low, series.high)]
    course: Cell = Course(series.course) if series.course else ""
    return [str(series.count), shown(series.first), shown(series.last), *extremes, course, f"update {series.update}"]


def _print_lines(run: GrowingRun, console: Console, keys: Sequence[str], every: float) -> None:
    while True:
        entries = run.poll()
        if entries is None and run.series:
            newest = {key: each.last for key, each in run.series.items() if each.update == run.iteration[1]}
            entries = [{**dict(zip(UNITS, run.iteration, strict=True)), **newest}]
        for entry in entries or ():
            values = {key: value for key, value in entry.items() if key not in UNITS and has_words(key, keys)}
            if found := [f"{inert(key)} {number(value)}" for key, value in values.items()]:
                console.print(
                    f"update {entry['update']}: {', '.join(found)}", markup=False, highlight=False, soft_wrap=True
                )
        time.sleep(every)
