"""Compare runs: record the update outputs of one, replay them through another front-end, measure how far two differ."""

from noether_core.parity.compare import Difference, compare_runs, differing_files, ulps
from noether_core.parity.recording import OutputRecorder, read_recording, replay

__all__ = ["Difference", "OutputRecorder", "compare_runs", "differing_files", "read_recording", "replay", "ulps"]
