"""Write a report of runs, and of a comparison, as one page of HTML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from noether_core.emit.files import require_replaceable, write_whole
from noether_core.emit.reader import RunReader, read_run
from noether_core.errors import NoetherError
from noether_core.inspect.newest import runs_at
from noether_core.parity.divergence.result import Comparison
from noether_core.probes.stages import STAGES
from noether_core.report.overview import overview
from noether_core.report.page import page
from noether_core.report.pictures import pictures
from noether_core.report.recorded import Recorded
from noether_core.report.settings import tables
from noether_core.report.verdict import verdict
from noether_core.silence import SILENT


@SILENT
def write_report(runs: Sequence[str | Path], out: str | Path, comparison: Comparison | None = None) -> Path:
    """Write one page of HTML that draws runs: curves, saved arrays, and configs and versions side by side.

    The page needs no network, and forbids itself any. Whatever a run holds is text in it, and nothing else. Of the same runs
    it has the same bytes.

    Args:
        runs: run directories, or folders of runs; of a comparison the two that were compared, in its order (or none, if they
            are not on disk).
        out: the file; it appears whole, and takes an earlier one's place.
        comparison: what was found; the page then begins with its sentence.

    Returns:
        `out`.

    Raises:
        RunFormatError: if one is no run directory.
        NoetherError: if there is nothing to draw.
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
        ...     write_report([Path(directory, "run")], Path(directory, "report.html")).read_bytes()[:15]
        b'<!doctype html>'
    """
    if not runs and comparison is None:
        raise NoetherError("a report needs at least one run directory, or a comparison; give one")
    out = Path(out)
    require_replaceable(out)
    readers = [read_run(each) for each in runs_at(runs)]
    write_whole(out, page(_data(readers, comparison), "Noether report"), is_durable=False)
    return out


def _data(readers: Sequence[RunReader], comparison: Comparison | None) -> dict[str, object]:
    runs = [Recorded(reader) for reader in readers]
    stages = {key.partition("/")[0] for run in runs for key in run.series} & set(STAGES)
    first = None if comparison is None else comparison.first
    differing = frozenset() if comparison is None else {each.key for each in comparison.differences}
    return {
        **overview(runs, comparison),
        "view": {},
        "arrays": pictures(runs, None if first is None else first.update, differing),
        "tables": tables(readers, comparison),
        "verdict": None if comparison is None else verdict(comparison, sorted(stages)),
    }
