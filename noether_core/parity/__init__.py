"""Compare runs: record the update outputs of one, replay them in another front-end, measure how far two differ; verify one."""

from noether_core.callbacks.record_outputs import OutputRecorder, read_recording
from noether_core.parity.check import CheckReport, check_run
from noether_core.parity.log_differences import Difference, compare_runs, differing_files, ulps
from noether_core.parity.merge import MergeReport, merge_run
from noether_core.parity.replay import replay

__all__ = [
    "CheckReport",
    "Difference",
    "MergeReport",
    "OutputRecorder",
    "check_run",
    "compare_runs",
    "differing_files",
    "merge_run",
    "read_recording",
    "replay",
    "ulps",
]
