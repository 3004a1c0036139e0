"""Name why a loss differs while the activations agree: its factor, its reduction, its function, its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from noether_core.parity.divergence.causes.case import Array, Case
from noether_core.parity.divergence.result import Cause
from noether_core.parity.divergence.training import Training
from noether_core.text import inert, number

_FITS = 2e-6
_MOST = 2_000_000


@dataclass(frozen=True)
class _Scored:
    """Hold the elements of a loss by its name, before they are reduced, and the arguments that it has."""

    name: str
    argument: str
    elements: Array


def loss_causes(case: Case) -> list[Cause]:
    """Name why the loss that first differs does, from its values and from the outputs and targets that went into it."""
    key = case.first.key
    pair = case.pair(key)
    if pair is None:
        return [Cause("loss-function", f"{inert(key)} differs in shape, or one lacks it.", (), 0.4)]
    found = list(_explained(case, key))
    a, b = float(pair[0].reshape(-1)[0]), float(pair[1].reshape(-1)[0])
    found += list(_factor(case, key, a, b))
    words = f"{inert(key)} is {number(a)} in one and {number(b)} in the other, from the same activations."
    found.append(Cause("loss-function", words, (), 0.45))
    found.append(Cause("loss-mask", f"{inert(key)} may leave other elements out.", (), 0.3))
    return found


def _factor(case: Case, key: str, a: float, b: float) -> Iterator[Cause]:
    """Name a constant factor, and what of the batch it is the size of. Gradients have it too where it is one."""
    if not a or not np.isfinite(b / a) or b == 0:
        return
    ratio = b / a
    gradients = _gradient_factor(case)
    constant = gradients is not None and abs(gradients / ratio - 1) < 1e-3
    lines = (f"ratio {number(ratio)}", f"gradients {'have the same' if constant else 'do not have this'} factor")
    whole = constant or (gradients is None and _steady(case, key, ratio))
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
    pairs = [pair for key in case.keys("grad")[:50] if (pair := case.pair(key)) is not None]
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


def _words(way: tuple[str, str, str]) -> str:
    return f"the {way[2]} of {way[0]}" + (f" ({way[1]})" if way[1] else "")


def _ways(side: Training, update: int, key: str) -> list[tuple[tuple[str, str, str], float]]:
    """Return the ways to compute a side's loss that fit, the best first."""
    value = side.array(update, key)
    keys = side.keys(update)
    outputs = [each for each in keys if each.startswith("act/")][-2:]
    if value is None or not outputs:
        return []
    target = float(np.asarray(value, np.float64).reshape(-1)[0])
    found = []
    for output in reversed(outputs):
        x = side.array(update, output)
        for data in (each for each in keys if each.startswith("data/")):
            y = side.array(update, data)
            if x is None or y is None or x.size > _MOST:
                continue
            for scored in _scored(x.astype(np.float64), y, target):
                for words, reduced in _reductions(scored.elements, y):
                    left = abs(reduced - target) / max(abs(target), 1e-30)
                    if left < _FITS:
                        found.append(((scored.name, scored.argument, words), left))
        if found:
            break
    return sorted(found, key=lambda each: len(each[0][1]) + (each[0][2] != "mean"))


def _reductions(elements: Array, targets: Array) -> Iterator[tuple[str, float]]:
    yield "mean", float(elements.mean())
    yield "half the mean", float(elements.mean() / 2)
    yield "sum", float(elements.sum())
    yield "half the sum", float(elements.sum() / 2)
    if elements.ndim > 1:
        yield "sum over features, mean over rows,", float(elements.sum() / len(elements))
        yield "sum over rows, mean over features,", float(elements.sum() / elements[0].size)
    if elements.ndim > 1 and np.issubdtype(targets.dtype, np.integer) and elements.shape == targets.shape:
        yield "mean without the last position", float(elements[:, :-1].mean())
        yield "mean without the first position", float(elements[:, 1:].mean())
    if np.issubdtype(targets.dtype, np.integer) and elements.shape == targets.shape:
        for value in (0, -100, -1):
            kept = targets != value
            if kept.any() and not kept.all():
                yield f"mean without targets of {value}", float(elements[kept].mean())
                yield f"mean without targets of {value}, over all,", float(elements[kept].sum() / elements.size)


def _scored(x: Array, y: Array, target: float) -> Iterator[_Scored]:
    if np.issubdtype(y.dtype, np.integer) and x.shape[:-1] == y.shape and x.ndim > 1:
        yield from _classified(x, y, target)
    elif x.size == y.size and np.issubdtype(y.dtype, np.floating):
        yield from _regressed(x - y.astype(np.float64).reshape(x.shape))


def _classified(x: Array, y: Array, target: float) -> Iterator[_Scored]:
    """Yield cross entropies; label smoothing is linear in its strength, which is solved for. Source: Szegedy et al. 2016."""
    if y.min() < 0 or y.max() >= x.shape[-1]:
        return
    logs = x - x.max(-1, keepdims=True)
    logs = logs - np.log(np.exp(logs).sum(-1, keepdims=True))
    plain = -np.take_along_axis(logs, y[..., None].astype(np.int64), -1)[..., 0]
    yield _Scored("cross entropy", "", plain)
    even = -logs.mean(-1)
    others = (even * x.shape[-1] - plain) / (x.shape[-1] - 1)
    for words, rest in (("", even), (" of the other classes", others)):
        gap = float((rest - plain).mean())
        strength = (target - float(plain.mean())) / gap if gap else 0.0
        if 5e-4 < strength < 0.6 and abs(strength * 1000 - round(strength * 1000)) < 2e-2:
            yield _Scored(
                "cross entropy", f"labels smoothed by {strength:.3g}{words}", (1 - strength) * plain + strength * rest
            )
    for gamma in (1.0, 2.0, 3.0):
        yield _Scored("focal loss", f"gamma {gamma:g}", (1 - np.exp(-plain)) ** gamma * plain)
    if x.shape[-1] > 1:
        own = np.exp(logs)
        squares = ((own - np.eye(x.shape[-1])[y]) ** 2).mean(-1)
        yield _Scored("squared error of probabilities", "", squares)


def _regressed(gap: Array) -> Iterator[_Scored]:
    size = np.abs(gap)
    functions: Mapping[str, Callable[[], Array]] = {
        "squared error": lambda: gap**2,
        "absolute error": lambda: size,
        "log cosh": lambda: np.log(np.cosh(np.minimum(size, 300.0))),
    }
    for name, function in functions.items():
        yield _Scored(name, "", function())
    for delta in (1.0, 0.5, 0.1, 2.0):
        huber = np.where(size <= delta, 0.5 * gap**2, delta * (size - 0.5 * delta))  # Huber 1964
        yield _Scored("Huber loss", f"delta {delta:g}", huber)
        yield _Scored("smooth absolute error", f"beta {delta:g}", huber / delta)
    if gap.ndim > 1:
        yield _Scored("norm of the error", "", np.linalg.norm(gap, axis=-1))
        yield _Scored("root mean square of the error", "", np.sqrt((gap**2).mean(keepdims=True)))
