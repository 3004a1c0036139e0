"""Tell whether a run that says it is a twin is one: the same training, one rounding error apart."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

from noether_core.parity.between_runs.views import Renamed
from noether_core.parity.divergence.training import Training, stage_of
from noether_core.silence import SILENT

_LARGEST = (
    1e-3  # of the loss, relative, after one rounding error of float32 in each weight; measured ones are below 1e-6
)
_EPSILONS = 20  # of the weights' dtype, where that is a coarser one
_OTHER_WEIGHTS = 1e-2  # relative; one rounding error is 4e-3 in bfloat16, other weights are 1 apart


@SILENT
def problem_of_twin(run: Training, twin: Training, *, rows: bool) -> str:
    """Return what is wrong with a twin, in a sentence, or an empty string.

    Args:
        run: the training that it is to be a twin of.
        twin: what was run.
        rows: whether its batches' rows were permuted.
    """
    common = [update for update in run.updates() if update in set(twin.updates())]
    if not common:
        return "it has no probed update that the run has, too: let the script probe the same updates"
    first = common[0]
    if not any(True for _ in _pairs(run, twin, first, STEP)):
        return f"it has nothing at update {first} that the run has, too: is it the same script?"
    if any(_is_other_data(run, twin, first, key) for key in _shared(run, twin, first, "data")):
        return "it had other batches: let the script draw them by a fixed seed, and give it the run's arguments"
    distances = [_distance(a, b) for a, b in _pairs(run, twin, first, ("param",))]
    if any(each > _OTHER_WEIGHTS for each in distances):
        return (
            f"its weights at update {first} are others (relative distance {max(distances):.2g}), not the run's by one rounding"
            " error: let the script start from a fixed seed or file, and give it the run's arguments"
        )
    if not rows and all(_distance(a, b) == 0 for a, b in _pairs(run, twin, first, STEP)):
        return (
            "it is the run itself, bit for bit: no weights were nudged. Call `twin(model)` (in JAX `params = twin(params)`)"
            " before the training"
        )
    moved = max((_distance(a, b) for a, b in _pairs(run, twin, first, ("loss",)) if a.size == 1), default=0.0)
    if moved > _largest(run, first):
        return f"its loss at update {first} is {moved:.2g} away from the run's, which no rounding error explains: " + (
            "do the rows draw random numbers of their own (dropout), or does the loss depend on their order?"
            if rows
            else "does the script draw random numbers that no seed fixes?"
        )
    return ""


STEP = ("param", "act", "loss", "grad", "clip", "update", "opt")


@SILENT
def has_other_rows(run: Training, twin: Training) -> bool:
    """Tell whether a twin was given its run's batches with their rows in another order."""
    common = [update for update in run.updates() if update in set(twin.updates())]
    pairs = _pairs(run, twin, common[0], ("data",)) if common else ()
    return any(a.ndim > 0 and not np.array_equal(a, b, equal_nan=True) for a, b in pairs)


def usable_part(twin: Training, *, rows: bool) -> Training:
    """Return what of a twin can be held against its run: where rows were permuted, nothing that has a row an example."""
    return Renamed(twin, lambda key: None if stage_of(key) in ("data", "act") else key) if rows else twin


def _shared(run: Training, twin: Training, update: int, *stages: str) -> list[str]:
    there = set(twin.keys(update))
    return [key for key in run.keys(update) if key in there and stage_of(key) in stages]


def _pairs(
    run: Training, twin: Training, update: int, stages: tuple[str, ...]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for key in _shared(run, twin, update, *stages):
        a, b = _values(run, update, key), _values(twin, update, key)
        if a is not None and b is not None and a.shape == b.shape:
            yield a, b


def _values(training: Training, update: int, key: str) -> np.ndarray | None:
    """Return an array in binary64; where it was not kept, its norm and mean."""
    array = training.array(update, key)
    if array is not None:
        return array.astype(np.float64)
    found = training.statistics(update, key)
    return None if found is None else np.array([found.norm, found.mean])


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    largest = max(float(np.linalg.norm(a)), float(np.linalg.norm(b)))
    return float(np.linalg.norm(a - b)) / largest if largest else 0.0


def _is_other_data(run: Training, twin: Training, update: int, key: str) -> bool:
    """Tell whether a batch's array holds other values, in whatever order."""
    a, b = run.statistics(update, key), twin.statistics(update, key)
    if a is None or b is None:
        return False
    if a.fingerprint and b.fingerprint:
        return a.fingerprint != b.fingerprint
    return (a.count, a.min, a.max) != (b.count, b.min, b.max)


def _largest(run: Training, update: int) -> float:
    dtypes = {
        array.dtype for key in _shared(run, run, update, "param") if (array := run.array(update, key)) is not None
    }
    epsilons = [
        float(ml_dtypes.finfo(each).eps)  # type: ignore[no-untyped-call]
        for each in dtypes
        if "float" in each.name
    ]
    return max([_LARGEST, *(_EPSILONS * each for each in epsilons)])
