"""Find where two trainings first part ways, how sure that is, and why."""

from noether_core.parity.divergence.compare import compare
from noether_core.parity.divergence.noise import FLOORS, Noise
from noether_core.parity.divergence.result import Cause, Comparison, Divergence, Outcome
from noether_core.parity.divergence.training import MemoryTraining, Training, stage_of
from noether_core.probes.stages import STAGES
from noether_core.probes.statistics import Statistics

__all__ = [
    "FLOORS",
    "STAGES",
    "Cause",
    "Comparison",
    "Divergence",
    "MemoryTraining",
    "Noise",
    "Outcome",
    "Statistics",
    "Training",
    "compare",
    "stage_of",
]
