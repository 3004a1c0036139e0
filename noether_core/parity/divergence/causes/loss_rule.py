"""Name why a loss differs while the activations agree: its factor, its reduction, its function, its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from noether_core.parity.divergence.causes.case import Case
from noether_core.parity.divergence.causes.losses import reductions, scored
from noether_core.parity.divergence.causes.measures import least_squares
from noether_core.parity.divergence.result import Cause
from noether_core.parity.divergence.training import Training
from noether_core.text import inert, number

_FITS = 2e-6
_MOST = 2_000_000
_CONFIRMED = 2  # later updates at which a way must fit as well

Way = tuple[str, str, str]  # a loss by its name, its argument, and how it is reduced


def loss_causes(case: Case) -> list[Cause]:
    """Name why the loss that first differs does, from its values and from the outputs and targets that went into it."""
    key = case.first.key
    pair = case.pair(key)
    if pair is None:
        return [Cause("loss-function", f"{inert(key)} differs in shape, or one lacks it.", (), 0.4)]
    a, b = float(pair[0].reshape(-1)[0]), float(pair[1].reshape(-1)[0])
    found = list(_weighted(case, key)) or list(_explained(case, key)) or list(_terms(case, key, a, b))
    found += list(_factor(case, key, a, b))
    words = f"{inert(key)} is {number(a)} in one and {number(b)} in the other, from the same activations."
    found.append(Cause("loss-function", words, (), 0.45))
    found.append(Cause("loss-mask", f"{inert(key)} may leave other elements out.", (), 0.3))
    return found


def _weighted(case: Case, key: str) -> Iterator[Cause]:
    """Ask for each side by what weights its total sums its parts, where the parts were kept and agree."""
    parts = [each for each in case.keys("loss") if each != key]
    updates = [
        update for update in case.updates() if all(case.pair(each, update) is not None for each in (key, *parts))
    ]
    if not parts or len(updates) <= len(parts) or not all(case.agrees(each) for each in parts):
        return
    weights = []
    for side in (0, 1):
        columns = np.array([[_value(case, each, update, side) for each in parts] for update in updates])
        total = np.array([_value(case, key, update, side) for update in updates])
        solved = least_squares(columns, total)
        if solved is None or np.abs(columns @ solved - total).max() > 1e-5 * np.abs(total).max():
            return
        weights.append(solved)
    one, other = weights
    place = int(np.argmax(np.abs(one - other)))
    words = f"{inert(parts[place])} counts {number(float(one[place]))} in one and {number(float(other[place]))} in the other"
    lines = tuple(
        f"{inert(each)}: {number(float(x))} and {number(float(y))}"
        for each, x, y in zip(parts, one, other, strict=True)
    )
    yield Cause("loss-factor", f"In {inert(key)}, {words}.", lines, 0.94)
    yield Cause("loss-function", f"{inert(key)} sums its parts otherwise: {words}.", lines, 0.8)


def _value(case: Case, key: str, update: int, side: int) -> float:
    pair = case.pair(key, update)
    return float("nan") if pair is None else float(pair[side].reshape(-1)[0])


def _factor(case: Case, key: str, a: float, b: float) -> Iterator[Cause]:
    """Name a constant factor, and what of the batch it is the size of. Gradients have it too where it is one."""
    if not a or not np.isfinite(b / a) or b == 0:
        return
    ratio = b / a
    gradients = _gradient_factor(case)
    constant = gradients is not None and abs(gradients / ratio - 1) < 1e-3
    lines = (f"ratio {number(ratio)}", f"gradients {'have the same' if constant else 'do not have this'} factor")
    whole = constant or (not case.keys("grad") and _steady(case, key, ratio))
    words = f"{inert(key)} is {number(ratio)} times the first's"
    named = next((name for name, size in _sizes(case).items() if _is_either(ratio, size)), "")
    if named:
        sentence = f"{words}, which is {named} or one over it: a sum for a mean."
        yield Cause("loss-reduction", sentence, lines, 0.95 if whole else 0.85)
    if whole:
        yield Cause("loss-factor", f"{words}, gradients too.", lines, 0.75 if named else 0.9)
    if whole and not named:
        yield Cause("loss-reduction", f"{words}: a mean over something else.", lines, 0.7)


def _is_either(ratio: float, size: float) -> bool:
    return size > 1 and any(abs(each / size - 1) < 1e-5 for each in (ratio, 1 / ratio))


def _gradient_factor(case: Case) -> float | None:
    """Return the factor of the gradients, if it is one for all; None if it is not."""
    squares = products = lefts = 0.0
    pairs = [pair for key in case.keys("grad")[:50] if (pair := case.some(key)) is not None]
    for x, y in pairs:
        squares += float((x * x).sum())
        products += float((x * y).sum())
    if not squares:
        return None
    factor = products / squares
    for x, y in pairs:
        lefts += float(((y - factor * x) ** 2).sum())
    return factor if lefts < 1e-8 * factor**2 * squares else None


def _steady(case: Case, key: str, ratio: float) -> bool:
    pairs = [pair for update in case.updates()[:5] if (pair := case.pair(key, update)) is not None]
    ratios = [float(y.reshape(-1)[0] / x.reshape(-1)[0]) for x, y in pairs if x.reshape(-1)[0]]
    return len(ratios) > 1 and max(abs(each / ratio - 1) for each in ratios) < 0.05


def _sizes(case: Case) -> Mapping[str, float]:
    """Return sizes that a mean can be over."""
    found: dict[str, float] = {"2": 2.0}
    for key in [*case.keys("data"), *case.keys("act")[-2:]]:
        pair = case.pair(key)
        if pair is None or not pair[0].ndim:
            continue
        shape = pair[0].shape
        for index, size in enumerate(shape):
            found.setdefault(f"the size of axis {index} of {inert(key)}", float(size))
        found.setdefault(f"the number of elements of {inert(key)}", float(pair[0].size))
        if len(shape) > 2:
            found.setdefault(f"the size of the first two axes of {inert(key)}", float(shape[0] * shape[1]))
    return found


def _explained(case: Case, key: str) -> Iterator[Cause]:
    """Search a function and a reduction of the last activation and the targets for each side, and compare them."""
    ways = [_ways(side, case.update, key) for side in (case.a, case.b)]
    for one, left_a in ways[0]:
        for other, left_b in ways[1]:
            words = f"{inert(key)} is {_words(one)} in one and {_words(other)} in the other."
            lines = (f"left over {number(left_a)} and {number(left_b)}",)
            if one[0] != other[0]:
                yield Cause("loss-function", words, lines, 0.93)
            elif one[1] != other[1]:
                yield Cause("label-smoothing" if "smooth" in one[1] + other[1] else "loss-function", words, lines, 0.96)
            elif one[2] != other[2]:
                cause = "loss-mask" if "without" in one[2] + other[2] else "loss-reduction"
                yield Cause(cause, words, lines, 0.96)
            return


def _words(way: Way) -> str:
    return f"the {way[2]} of {way[0]}" + (f" ({way[1]})" if way[1] else "")


def _ways(side: Training, update: int, key: str) -> list[tuple[Way, float]]:
    """Return the ways to compute a side's loss that fit, at this update and those after it, the plainest first."""
    fitting = _fitting(side, update, key)
    for later in [each for each in side.updates() if each > update][:_CONFIRMED]:
        again = _fitting(side, later, key)
        fitting = {way: left for way, left in fitting.items() if way in again} if again else fitting
    return sorted(fitting.items(), key=lambda each: _plainness(each[0]))


def _fitting(side: Training, update: int, key: str) -> dict[Way, float]:
    """Return the ways that fit at an update, and what they leave."""
    value = side.array(update, key)
    if value is None:
        return {}
    target = float(np.asarray(value, np.float64).reshape(-1)[0])
    lefts = ((way, abs(each - target) / max(abs(target), 1e-30)) for way, each in _candidates(side, update, target))
    return {way: left for way, left in lefts if left < _FITS}


def _plainness(way: Way) -> int:
    return len(way[1]) + (way[2] != "mean")


def _candidates(side: Training, update: int, target: float) -> Iterator[tuple[Way, float]]:
    """Yield losses of the last activations and the targets that have their shapes; smoothing is solved for the target."""
    keys = side.keys(update)
    data = [each for name in keys if name.startswith("data/") and (each := side.array(update, name)) is not None]
    masks = [each.astype(np.float64) for each in data if each.ndim and set(np.unique(each).tolist()) == {0, 1}]
    for output in reversed([each for each in keys if each.startswith("act/")][-4:]):
        x = side.array(update, output)
        for y in data:
            if x is None or x.size > _MOST:
                continue
            for loss in scored(x.astype(np.float64), y, target):
                for words, reduced in reductions(loss.elements, y, masks):
                    yield (loss.name, loss.argument, words), reduced


def _terms(case: Case, key: str, a: float, b: float) -> Iterator[Cause]:
    """Ask whether one term is another, and the rest of the loss the same: the difference is that of two losses."""
    ways = list(_candidates(case.a, case.update, float("nan")))
    found = []
    for one, value in ways:
        for other, changed in ways:
            if one != other and (one[:2] == other[:2] or one[2] == other[2]):
                left = abs(changed - value - (b - a)) / max(abs(b - a), 1e-30)
                found.append((left, _plainness(one) + _plainness(other), one, other))
    limit = max(1e-4, 3e-7 * max(abs(a), abs(b)) / max(abs(b - a), 1e-30))
    fitting = sorted((each[1:], each[0]) for each in found if each[0] < limit)
    if not fitting:
        return
    (_, one, other), left = fitting[0]
    masked = "without" in one[2] + other[2]
    cause = "loss-function" if one[:2] != other[:2] else "loss-mask" if masked else "loss-reduction"
    sentence = (
        f"The difference of {inert(key)} is that of {_words(other)} and {_words(one)}, beside what else it holds."
    )
    yield Cause(cause, sentence, (f"left over {number(left)} of the difference",), 0.8)
