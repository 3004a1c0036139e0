"""Look at what there is at some paths: a run, several, a folder of runs, or a capsule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType

from noether_core.emit.capsule import read_capsule
from noether_core.emit.reader import read_run
from noether_core.inspect.capsule import STEPS, show_capsule
from noether_core.inspect.listing import show_runs
from noether_core.inspect.newest import is_run, newest_of, runs_below
from noether_core.inspect.show import show_run, show_together


def look(paths: Sequence[Path], keys: Sequence[str] = (), steps: int = STEPS) -> RenderableType:
    """Return what `noether-parity show` prints.

    Args:
        paths: run directories; or one folder of runs, or one capsule.
        keys: words of the keys that are shown, as `has_words` has them; none: all keys.
        steps: how many steps of a capsule are shown.

    Raises:
        RunFormatError: if one is none of these.
        NoetherError: if no key has the words.
    """
    path = paths[0]
    if len(paths) > 1:
        return show_together([read_run(each) for each in paths], keys)
    if path.is_file():
        return show_capsule(read_capsule(path), steps)
    if path.is_dir() and not is_run(path) and (found := [newest_of(each) for each in runs_below(path)]):
        return show_runs(path, found)
    return show_run(read_run(path), keys)
