"""Draw the curves of runs: as a page of HTML that needs no network, or as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from noether_core.emit.files import require_replaceable, write_whole
from noether_core.emit.reader import read_run
from noether_core.errors import NoetherError
from noether_core.inspect.newest import runs_at
from noether_core.report.curves import AXES, keys_of
from noether_core.report.figure import FORMATS, View, figure
from noether_core.report.overview import labels, overview
from noether_core.report.page import page
from noether_core.report.recorded import Recorded
from noether_core.silence import SILENT
from noether_core.text import has_words, message

_MOST_SMOOTH = 25.0  # percent of an axis


@SILENT
def write_plot(
    runs: Sequence[str | Path],
    out: str | Path = "plot.html",
    *,
    keys: Sequence[str] = (),
    axis: str = "update",
    log: bool = False,
    smooth: float = 0.0,
) -> Path:
    """Draw the curves of runs, those of one key together: as the page of `write_report` without the rest, or as a picture.

    Args:
        runs: run directories, or folders of runs.
        out: the file; it takes an earlier one's place. It ends in `.html`, or for a picture in `.png`, `.svg` or `.pdf`.
        keys: words of the keys that are drawn: those that have every word of one of these; none: all keys.
        axis: `update`, `epoch`, `sample` or `time` (seconds since a run's first entry); a picture lacks runs that did not
            count it. On the page this and what follows can be changed.
        log: whether the values' scale is logarithmic.
        smooth: percent of the axis, 0 to 25: each value becomes the mean of those around, weighted by a Gaussian of that
            standard deviation; what was logged is drawn faintly beneath.

    Raises:
        RunFormatError: if one is no run directory.
        NoetherError: if there is nothing to draw, or an argument is none of these.
        MissingDependencyError: for a picture where matplotlib is not installed.
        OSError: if the file cannot be written.

    Example:
        >>> write_plot([], "plot.html")
        Traceback (most recent call last):
        noether_core.errors.NoetherError: a plot needs at least one run directory; give one
    """
    out, view = Path(out), View(axis, log, float(smooth))
    _require(runs, out, view)
    write_whole(
        out, _drawn([Recorded(read_run(each)) for each in runs_at(runs)], keys, view, out.suffix[1:]), is_durable=False
    )
    return out


def _drawn(runs: Sequence[Recorded], keys: Sequence[str], view: View, ending: str) -> bytes:
    wanted = {key for key in keys_of(runs) if has_words(key, keys)}
    if not wanted:
        raise NoetherError(_nothing(runs, keys))
    if ending == "html":
        return page(_data(runs, wanted, view), "Noether plot")
    return figure(runs, labels([run.run for run in runs]), wanted, view, ending)


def _require(runs: Sequence[str | Path], out: Path, view: View) -> None:
    if not runs:
        raise NoetherError("a plot needs at least one run directory; give one")
    if out.suffix != ".html" and out.suffix[1:] not in FORMATS:
        endings = ", ".join(f".{ending}" for ending in FORMATS)
        raise NoetherError(
            f"{str(out)!r} ends in {out.suffix!r}; give a file that ends in .html (a page), or {endings}"
        )
    require_replaceable(out)
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
