"""Assert in a test that two runs are the same training."""

from __future__ import annotations

from collections.abc import Sequence

from noether_core.errors import NoetherError
from noether_core.parity.between_runs.aligned import Mapped
from noether_core.parity.between_runs.answer import compare_trainings
from noether_core.parity.between_runs.pair import Given
from noether_core.parity.between_runs.screen import as_text
from noether_core.parity.divergence import Comparison
from noether_core.text import inert


class NotTheSameTrainingError(NoetherError, AssertionError):
    """Report two trainings that differ, or of which it cannot be said.

    Attributes:
        comparison: what was found.
    """

    def __init__(self, comparison: Comparison, message: str) -> None:
        super().__init__(message)
        self.comparison = comparison


def assert_same_training(
    a: Given, b: Given, *, twins: Sequence[Given] = (), mapping: Mapped = None, through: int | None = None
) -> Comparison:
    """Assert that two trainings compute the same, up to the noise of their twins; see `compare_trainings` for the arguments.

    Returns:
        The comparison, for what else a test wants to know of it.

    Raises:
        NotTheSameTrainingError: an `AssertionError` with the sentence, the first differences, likely causes, and what to do.

    Example::

        def test_the_port_trains_as_the_original_does():
            assert_same_training("runs/torch", "runs/jax")
    """
    found = compare_trainings(a, b, twins=twins, mapping=mapping, through=through)
    if found.outcome != "same":
        raise NotTheSameTrainingError(found, f"{as_text(found, most=5)}\n{_advice(a, b, found)}")
    return found


def _advice(a: Given, b: Given, found: Comparison) -> str:
    paths = [inert(str(each) if not hasattr(each, "label") else each.label) for each in (a, b)]
    lines = [f"See all of it: noether-parity compare {paths[0]} {paths[1]} --report comparison.html"]
    if not found.has_twins:
        lines.append(
            f"If this may be rounding, measure it: noether-parity calibrate {paths[0]} -- python YOUR_SCRIPT.py"
        )
    return "\n".join(lines)
