"""Find where two trainings first part ways, how sure that is, and why."""

from noether_core.parity.divergence.result import Cause, Comparison, Divergence, Outcome
from noether_core.parity.divergence.training import MemoryTraining, Training, stage_of
from noether_core.probes.stages import STAGES
from noether_core.probes.statistics import Statistics

__all__ = [
    "STAGES",
    "Cause",
    "Comparison",
    "Divergence",
    "MemoryTraining",
    "Outcome",
    "Statistics",
    "Training",
    "stage_of",
]
