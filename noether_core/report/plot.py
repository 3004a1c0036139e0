"""Draw the curves of runs: as a page of HTML that needs no network, or as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noether_core.emit.files import write_whole
from noether_core.emit.reader import read_run
from noether_core.errors import NoetherError
from noether_core.report.curves import AXES, keys_of
from noether_core.report.figure import FORMATS, View, figure
from noether_core.report.overview import labels, overview
from noether_core.report.page import page
from noether_core.report.recorded import Recorded
from noether_core.text import has_words, message

_MOST_SMOOTH = 25.0  # percent of an axis


def write_plot(
    runs: Sequence[str | Path],
    out: str | Path = "plot.html",
    *,
    keys: Sequence[str] = (),
    axis: str = "update",
    log: bool = False,
    smooth: float = 0.0,
) -> Path:
    """Draw the curves of runs, those of one key together, and write a page of HTML or a picture.

    The page is the curves of `write_report`'s, and as that one loads nothing, runs nothing but its own program, and can be told
    on the screen to draw over another axis, on a log scale, or smoothed. A picture needs matplotlib.

    Args:
        runs: run directories.
        out: the file; it appears whole, and takes an earlier one's place. Its ending says what is written: `.html`, or `.png`,
            `.svg`, `.pdf`.
        keys: words of the keys that are drawn: those that have every word of one of these; none: all keys.
        axis: what they are drawn over: `update`, `epoch`, `sample` or `time` (seconds since the run's first entry). A run that
            did not count it is left out of a picture.
        log: whether the values' scale is logarithmic.
        smooth: how smooth curves are, in percent of the axis, from 0 (as logged) to 25: each value becomes the mean of those
            around, weighted by a Gaussian of so large a standard deviation. What was logged is drawn faintly beneath.

    Returns:
        `out`.

    Raises:
        RunFormatError: if one is no run directory.
        NoetherError: if there is nothing to draw, or an argument says what is none of these.
        MissingDependencyError: for a picture where matplotlib is not installed.
        OSError: if the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from noether_core import LogWriter, UpdateCounter
        >>> with TemporaryDirectory() as directory:
        ...     counter = UpdateCounter()
        ...     writer = LogWriter(Path(directory, "run"), update_counter=counter)
        ...     counter.next_update()
        ...     writer.add_scalar("loss", 0.5)
        ...     writer.flush()
        ...     writer.close()
        ...     write_plot([Path(directory, "run")], Path(directory, "plot.html"), smooth=2).read_bytes()[:15]
        b'<!doctype html>'
    """
    out, view = Path(out), View(axis, log, float(smooth))
    _require(runs, out, view)
    found = [Recorded(read_run(each)) for each in runs]
    wanted = {key for key in keys_of(found) if has_words(key, keys)}
    if not wanted:
        raise NoetherError(_nothing(found, keys))
    if out.suffix == ".html":
        data = page(_data(found, wanted, view), "Noether plot")
    else:
        data = figure(found, labels([run.run for run in found]), wanted, view, out.suffix[1:])
    write_whole(out, data, is_durable=False)
    return out


def _require(runs: Sequence[str | Path], out: Path, view: View) -> None:
    if not runs:
        raise NoetherError("a plot needs at least one run directory; give one")
    if out.suffix != ".html" and out.suffix[1:] not in FORMATS:
        endings = ", ".join(f".{ending}" for ending in FORMATS)
        raise NoetherError(
            f"{str(out)!r} ends in {out.suffix!r}; give a file that ends in .html (a page), or {endings}"
        )
    if view.axis not in AXES:
        raise NoetherError(f"axis is {view.axis!r:.80}; give one of {', '.join(AXES)}")
    if not (math.isfinite(view.smooth) and 0 <= view.smooth <= _MOST_SMOOTH):
        raise NoetherError(f"smooth is {view.smooth!r}; give percent of the axis, from 0 to {_MOST_SMOOTH:g}")


def _nothing(runs: Sequence[Recorded], keys: Sequence[str]) -> str:
    logged = keys_of(runs)
    if not logged:
        return "nothing is logged yet in these runs; plot them when there is"
    some = ", ".join(message(key, 80) for key in logged[:5]) + (", …" if len(logged) > 5 else "")
    return f"no key has the words {', '.join(map(repr, keys))}; the runs logged {len(logged)}: {some}"


def _data(runs: Sequence[Recorded], wanted: set[str], view: View) -> dict[str, Any]:
    return {
        **overview(runs, keys=wanted),
        "view": view._asdict(),
        "arrays": {"pictures": [], "problems": []},
        "tables": [],
        "verdict": None,
    }
