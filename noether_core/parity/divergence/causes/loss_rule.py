"""Name why a loss differs: its factor, reduction, function, arguments; or the forward pass, where that was not compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from noether_core.parity.divergence.causes.case import Case
from noether_core.parity.divergence.causes.loss_ways import Way, candidates, plainness, ways, words_of
from noether_core.parity.divergence.causes.measures import least_squares
from noether_core.parity.divergence.result import Cause
from noether_core.probes.stages import accumulation_step_of
from noether_core.text import inert, number, numbers_apart


def loss_causes(case: Case) -> list[Cause]:
    """Name why the loss that first differs does, from its values and from the outputs and targets that went into it."""
    key = case.first.key
    values = _values(case, key)
    if values is None:
        return [Cause("loss-function", f"{inert(key)} differs in shape, or one lacks it.", (), 0.4)]
    a, b = values
    unseen = _not_compared(case, key)
    found = list(_weighted(case, key)) or list(_explained(case, key, bool(unseen)))
    found = found or ([] if unseen else list(_terms(case, key, a, b)))
    found += list(_factor(case, key, a, b))
    one, other = numbers_apart(a, b)
    words = f"{inert(key)} is {one} in one and {other} in the other"
    if unseen:
        sentence = f"{unseen}: it is the forward pass or the loss. Probe activations in both, to tell which."
        found.append(Cause("forward-other", sentence, (), 0.5))
        found.append(Cause("loss-function", f"{words}; whether from the same activations is not known.", (), 0.4))
    else:
        found.append(Cause("loss-function", f"{words}, from the same activations.", (), 0.45))
        found.append(Cause("loss-mask", f"{inert(key)} may leave other elements out.", (), 0.3))
    return found


def _values(case: Case, key: str) -> tuple[float, float] | None:
    """Return both sides' loss, by its mean where no array was kept; None if one lacks it or the shapes differ."""
    pair = case.pair(key)
    if pair is not None:
        return float(pair[0].reshape(-1)[0]), float(pair[1].reshape(-1)[0])
    one, other = (side.statistics(case.update, key) for side in (case.a, case.b))
    return None if one is None or other is None or one.count != other.count else (one.mean, other.mean)


def _not_compared(case: Case, key: str) -> str:
    """Say in words that what the loss is computed from was not compared; return nothing where it was, and agrees.

    The last activation of a side is what the loss is computed from; the side that has more of them is asked which that is.
    """
    step = accumulation_step_of(key)
    sides = [
        [each for each in side.keys(case.update) if each.startswith("act/") and accumulation_step_of(each) == step]
        for side in (case.a, case.b)
    ]
    both = [each for each in sides[0] if each in set(sides[1])]
    if both and max(sides, key=len)[-1] in both:
        return ""
    if both:
        return f"{inert(both[-1])} is the last activation that was compared, and the loss is computed from later ones"
    if all(sides):
        return "No activations were compared, for none has the same name in both"
    who = "neither" if not any(sides) else "the first" if not sides[0] else "the second"
    return f"No activations were compared, for {who} has {'any' if who == 'neither' else 'none'}"


def _weighted(case: Case, key: str) -> Iterator[Cause]:
    """Ask for each side by what weights its total sums its parts, where the parts were kept and agree."""
    step = accumulation_step_of(key)
    parts = [each for each in case.keys("loss") if each != key and accumulation_step_of(each) == step]
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
    near = min(1e-3, 0.1 * abs(ratio - 1))  # a factor is the same everywhere, to well within how far it is from 1
    gradients = _gradient_factor(case, near)
    constant = gradients is not None and abs(gradients / ratio - 1) < near
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


def _gradient_factor(case: Case, near: float) -> float | None:
    """Return the factor of the gradients, if it is one for all, and leaves of them less than `near`; None if it is not."""
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
    return factor if lefts < min(1e-8, near**2) * factor**2 * squares else None


def _steady(case: Case, key: str, ratio: float) -> bool:
    pairs = [pair for update in case.updates()[:5] if (pair := case.pair(key, update)) is not None]
    ratios = [float(y.reshape(-1)[0] / x.reshape(-1)[0]) for x, y in pairs if x.reshape(-1)[0]]
    return len(ratios) > 1 and max(abs(each / ratio - 1) for each in ratios) < 0.05 * min(1.0, abs(ratio - 1))


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


def _explained(case: Case, key: str, unseen: bool) -> Iterator[Cause]:
    """Search a function and a reduction of the last activation and the targets for each side, and compare them.

    A side that has no such activation may still have the loss that the other one's give: then the forward pass is the same.
    """
    sides = (case.a, case.b)
    found = [ways(side, case.update, key) for side in sides]
    for own, other in ((0, 1), (1, 0)):
        if unseen and found[other] and not found[own]:
            found[own] = ways(sides[own], case.update, key, sides[other])
    if not all(found):
        return
    (one, left_a), (other_way, left_b) = found[0][0], found[1][0]
    words = f"{inert(key)} is {words_of(one)} in one and {words_of(other_way)} in the other."
    cause = _changed(one, other_way)
    if cause:
        lines = (f"left over {number(left_a)} and {number(left_b)}",)
        yield Cause(cause, words, lines, 0.93 if one[0] != other_way[0] else 0.96)


def _changed(one: Way, other: Way) -> str:
    """Return the cause that leads from one way to another; none where they are the same."""
    if one[0] != other[0]:
        return "loss-function"
    arguments = set(one[1].split(", ")) ^ set(other[1].split(", "))
    if arguments:
        return "label-smoothing" if all("smooth" in each for each in arguments - {""}) else "loss-function"
    if one[2] != other[2]:
        return (
            "loss-reduction"
            if _left_out(one) == _left_out(other) and "over all" not in one[2] + other[2]
            else "loss-mask"
        )
    return ""


def _left_out(way: Way) -> str:
    """Return what a reduction leaves out, in words."""
    return way[2].partition("without ")[2].partition(",")[0]


def _terms(case: Case, key: str, a: float, b: float) -> Iterator[Cause]:
    """Ask whether one term is another, and the rest of the loss the same: the difference is that of two losses."""
    known = list(candidates(case.a, case.update, key))
    found = []
    for one, value in known:
        for other, changed in known:
            if one != other and (one[:2] == other[:2] or one[2] == other[2]):
                left = abs(changed - value - (b - a)) / max(abs(b - a), 1e-30)
                found.append((left, plainness(one) + plainness(other), one, other))
    limit = max(1e-4, 3e-7 * max(abs(a), abs(b)) / max(abs(b - a), 1e-30))
    fitting = sorted((each[1:], each[0]) for each in found if each[0] < limit)
    if not fitting:
        return
    (_, one, other), left = fitting[0]
    cause = _changed(one, other) if one[:2] == other[:2] else "loss-function"
    sentence = (
        f"The difference of {inert(key)} is that of {words_of(other)} and {words_of(one)}, beside what else it holds."
    )
    yield Cause(cause, sentence, (f"left over {number(left)} of the difference",), 0.8)
