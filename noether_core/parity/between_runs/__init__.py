"""Compare two runs from their directories, make their twins, and assert in a test that they are the same training.

Example::

    from noether_core.parity.between_runs import compare_trainings

    print(compare_trainings("runs/torch", "runs/jax").sentence)
"""

from noether_core.parity.between_runs.answer import compare_pair, compare_trainings
from noether_core.parity.between_runs.asserting import NotTheSameTrainingError, assert_same_training
from noether_core.parity.between_runs.calibrate import calibrate, find_twins
from noether_core.parity.between_runs.culprit import find_culprit
from noether_core.parity.between_runs.json_form import ComparisonForm, json_schema
from noether_core.parity.between_runs.pair import Pair, paired
from noether_core.parity.between_runs.replayable import Place, ReplayError
from noether_core.parity.between_runs.screen import as_text, show_comparison
from noether_core.parity.between_runs.step import Step
from noether_core.parity.between_runs.swaps import Swap
from noether_core.parity.between_runs.transplant import Transplant, transplant
from noether_core.twin import Twin, TwinError, this_twin, twin_path

__all__ = [
    "ComparisonForm",
    "NotTheSameTrainingError",
    "Pair",
    "Place",
    "ReplayError",
    "Step",
    "Swap",
    "Transplant",
    "Twin",
    "TwinError",
    "as_text",
    "assert_same_training",
    "calibrate",
    "compare_pair",
    "compare_trainings",
    "find_culprit",
    "find_twins",
    "json_schema",
    "paired",
    "show_comparison",
    "this_twin",
    "transplant",
    "twin_path",
]
