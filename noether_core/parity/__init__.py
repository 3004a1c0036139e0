"""Compare runs: record the update outputs of one, replay them through another front-end, measure how far two differ."""

from noether_core.callbacks.record_outputs import OutputRecorder, read_recording
from noether_core.parity.compare import Difference, compare_runs, differing_files, ulps
from noether_core.parity.merge import MergeReport, merge_run
from noether_core.parity.replay import replay

__all__ = [
    "Difference",
    "MergeReport",
    "OutputRecorder",
    "compare_runs",
    "differing_files",
    "merge_run",
    "read_recording",
    "replay",
    "ulps",
]
