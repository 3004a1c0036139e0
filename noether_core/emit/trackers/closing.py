"""Close several feeds within one time limit, and put into words what each of them missed."""

from __future__ import annotations

import shlex
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from noether_core.emit.trackers import TOOLS
from noether_core.emit.trackers.feed import Feed


def close_feeds(feeds: Sequence[Feed], run_path: Path | None, time_limit: float) -> None:
    """Let every feed empty its queue, all at once, for at most `time_limit` seconds; warn of each that missed something."""
    feeds = [feed for feed in feeds if feed.is_ours]
    deadline = time.monotonic() + time_limit
    for feed in feeds:
        feed.finish()
    ended = [feed.wait(deadline) for feed in feeds]
    for feed, has_ended in zip(feeds, ended, strict=True):
        missed = _missed(feed, has_ended, time_limit)
        if missed:
            _warn(f"tracker {feed.tracker!r} {missed}{remedy(feed, run_path)}")


def _missed(feed: Feed, has_ended: bool, time_limit: float) -> str:
    if feed.failed_at == "log":
        return ""  # warned about as a failure
    parts = []
    if feed.dropped:
        parts.append(f"missed {feed.dropped} entries, which met a full queue")
    if feed.failed_at == "close":
        parts.append(f"failed to close: {feed.error!r}")
    if not has_ended and feed.left:
        parts.append(f"did not take the last {feed.left} entries within {time_limit:g} s")
    elif not has_ended:
        parts.append(f"did not close within {time_limit:g} s")
    return " and ".join(parts)


def warn_of_failure(feed: Feed, run_path: Path | None) -> None:
    """Warn that a tracker raised on an entry, and so gets no more."""
    _warn(f"tracker {feed.tracker!r} failed and gets no more entries: {feed.error!r}{remedy(feed, run_path)}")


def remedy(feed: Feed, run_path: Path | None) -> str:
    """Return where the entries are, and the command that gives them to the tool; empty without a run directory."""
    if run_path is None:
        return ""
    kind = getattr(feed.tracker, "kind", None)
    command = f"noether-parity export {shlex.quote(str(run_path))} --to {kind if kind in TOOLS else 'csv'}"
    return f"; the entries are in the run directory: `{command}` writes them all"


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
