"""Ask the rules of the stage that differs first, and order what they say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from noether_core.parity.divergence.causes.buffer_rule import buffer_causes, is_buffer
from noether_core.parity.divergence.causes.case import Case, Filled, KnowsNoise
from noether_core.parity.divergence.causes.clip_rule import clip_causes
from noether_core.parity.divergence.causes.data_rule import data_causes
from noether_core.parity.divergence.causes.forward_rule import forward_causes
from noether_core.parity.divergence.causes.gradient_rule import gradient_causes
from noether_core.parity.divergence.causes.loss_rule import loss_causes
from noether_core.parity.divergence.causes.optimizer_causes import optimizer_causes
from noether_core.parity.divergence.causes.parameter_rule import parameter_causes
from noether_core.parity.divergence.causes.step_rule import step_causes
from noether_core.parity.divergence.ordering import in_one_order
from noether_core.parity.divergence.result import Cause, Comparison
from noether_core.parity.divergence.training import Training
from noether_core.silence import SILENT
from noether_core.text import inert

MOST = 5
_SHARE = 0.3  # of the likeliest cause's score: what is less likely is not worth reading

_RULES: Mapping[str, tuple[Callable[[Case], list[Cause]], ...]] = {
    "data": (data_causes,),
    "param": (parameter_causes,),
    "act": (forward_causes,),
    "loss": (loss_causes,),
    "grad": (gradient_causes,),
    "clip": (clip_causes,),
    "update": (optimizer_causes, step_causes),
    "opt": (optimizer_causes, step_causes),
}


def causes_of(a: Training, b: Training, noise: KnowsNoise | None, comparison: Comparison) -> tuple[Cause, ...]:
    """Name why two trainings part: at most five causes, the likeliest first; none where they do not part.

    Args:
        a: one training, with arrays of the first updates where causes are to be told apart.
        b: the other.
        noise: what a training drifts from its own twin; None where only floors are known.
        comparison: where they first part.

    >>> from noether_core.parity.divergence import Comparison, Divergence, MemoryTraining
    >>> import numpy as np
    >>> x = np.arange(12.0).reshape(4, 3)
    >>> one, other = (MemoryTraining("", "", {1: {"data/x": values}}) for values in (x, x[::-1]))
    >>> first = Divergence(1, "data", "data/x", 1.0, 1e-7)
    >>> causes_of(one, other, None, Comparison("differs", "", ("a", "b"), first))[0].id
    'batch-order'
    """
    return with_causes(a, b, noise, comparison).causes


@SILENT
def with_causes(a: Training, b: Training, noise: KnowsNoise | None, comparison: Comparison) -> Comparison:
    """Return a comparison with its likely causes, see `causes_of`, and a note on each rule that failed.

    A rule that fails must take neither the sentence nor the other rules with it, whatever a stranger's arrays do to it.
    """
    if comparison.first is None:
        return comparison
    a, b = map(Filled, in_one_order(a, b))
    case = Case(a, b, noise, comparison.first)
    rules = (buffer_causes,) if is_buffer(case.first.key) else _RULES.get(case.first.stage, ())
    best: dict[str, Cause] = {}
    notes: list[str] = []
    for cause in (each for rule in rules for each in _asked(rule, case, notes)):
        if cause.id not in best or best[cause.id].score < cause.score:
            best[cause.id] = cause
    likeliest = max((cause.score for cause in best.values()), default=0.0)
    worth = (cause for cause in best.values() if cause.score >= _SHARE * likeliest)
    found = comparison.with_causes(tuple(sorted(worth, key=lambda cause: -cause.score)[:MOST]))
    return replace(found, warnings=(*found.warnings, *notes))


def _asked(rule: Callable[[Case], list[Cause]], case: Case, notes: list[str]) -> list[Cause]:
    """Return what a rule says; where it fails, add a note."""
    try:
        return rule(case)
    except Exception as error:  # it is no reason not to say what the others found
        said = f"{rule.__name__} could not be asked about {case.first.key} ({type(error).__name__}: {error})"
        notes.append(inert(f"{said}: no cause is named by it. Please report this"))
        return []
