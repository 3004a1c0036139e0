"""Probe what a training step computes: statistics and arrays of each stage, under names that frameworks share."""

from noether_core.probes.callback import ProbeCallback
from noether_core.probes.columns import Columns
from noether_core.probes.fingerprint import fingerprint
from noether_core.probes.probed import Due, Probed
from noether_core.probes.recorded import RecordedTraining, read_training
from noether_core.probes.run import ProbedRun
from noether_core.probes.sampling import places
from noether_core.probes.stages import STAGES
from noether_core.probes.statistics import Statistics, statistics_of

__all__ = [
    "STAGES",
    "Columns",
    "Due",
    "ProbeCallback",
    "Probed",
    "ProbedRun",
    "RecordedTraining",
    "Statistics",
    "fingerprint",
    "places",
    "read_training",
    "statistics_of",
]
