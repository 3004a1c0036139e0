"""Find where two trainings first part ways, how sure that is, and why."""

from noether_core.parity.divergence.comparison import compare
from noether_core.parity.divergence.noise import FLOORS, Noise
from noether_core.parity.divergence.result import Cause, Comparison, Divergence, Outcome
from noether_core.parity.divergence.training import STAGES, MemoryTraining, Statistics, Training, stage_of

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
