"""Say how the rates and the decay of two fitted optimizers relate: over updates, and over parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.optimizer_rule import Edit
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

Array = np.ndarray[Any, Any]

_CLEAR = 6.0  # standard deviations
_WARM_UP = 5  # updates in which a schedule may be a step away that is not later
_MOVES = 1e-4  # of a ratio: what a norm that scales updates moves it by at least
_UNSTEADY = (
    0.02  # of a ratio's distance from one: what of it moves parameter by parameter is less where one rate is off
)
_ONE = 6e-8  # half a unit in the last place of 1 in binary32, as of 1 less rate times decay


@dataclass(frozen=True)
class Ratios:
    """Hold the rates of the second training over those of the first.

    Attributes:
        names: the keys' names.
        by_update, update_errors: `t`, over all keys; NaN where a rate is zero.
        by_key, key_errors: `k`, over all updates.
        rates: `2 × t`, of both sides, over all keys.
        moved: how far the ratio of single keys and updates is from a product of the two, in standard deviations.
        unsteady: the same, in units of how far the product is from one; 1 where it is much by itself.
    """

    names: tuple[str, ...]
    by_update: Array
    update_errors: Array
    by_key: Array
    key_errors: Array
    rates: Array
    moved: float
    unsteady: float = 1.0


def ratios(edit: Edit, names: tuple[str, ...]) -> Ratios:
    """Average the ratio of rates over keys and over updates, by how well each is known."""
    a, b = edit.a, edit.b
    ratio = b.rates / np.where(a.rates == 0, np.nan, a.rates)
    relative = np.hypot(
        a.rate_errors / np.abs(a.rates), b.rate_errors / np.abs(np.where(b.rates == 0, np.nan, b.rates))
    )
    error = np.hypot(relative, _floor(edit)[:, None]) * np.maximum(np.abs(ratio), 1e-3)
    error = np.where(np.isfinite(ratio) & (relative < 0.05), error, np.inf)
    by_update, update_errors, by_key, key_errors, moved = _separated(ratio, error)
    product = by_update[:, None] * by_key
    apart = [
        float(np.nanmedian(np.where(np.isfinite(error), np.abs(each), np.nan)))
        for each in (ratio - product, product - 1)
    ]
    unsteady = 1.0 if apart[0] > _MOVES else apart[0] / max(apart[1], 1e-12)
    rates = np.stack([_averaged(each.rates, np.maximum(each.rate_errors, 1e-300), axis=1)[0] for each in (a, b)])
    return Ratios(names, by_update, update_errors, by_key, key_errors, rates, moved, unsteady)


def rate_causes(edit: Edit, found: Ratios) -> Iterator[Cause]:
    """Name what differs in the rates: all or some parameters', a constant, another time course."""
    live = np.isfinite(found.by_key) & (found.key_errors < 1e-2)
    if not live.any() or not np.isfinite(found.by_update).any():
        return
    apart = live & (np.abs(found.by_key - 1) > _CLEAR * found.key_errors + 1e-6)
    if apart.any():
        yield _groups(found, live)
        if found.moved < 100 or found.unsteady < _UNSTEADY:
            return
    if found.moved > 100 and found.unsteady > _UNSTEADY:
        sentence = "Updates are scaled parameter by parameter, by a factor that moves, as in LARS and LAMB."
        yield Cause(
            "optimizer-other",
            sentence,
            (f"{number(found.moved)} standard deviations from one factor a parameter",),
            0.97,
        )
        return
    update = np.isfinite(found.by_update)
    constant, error = _averaged(found.by_update, found.update_errors, axis=0)
    still = (np.abs(found.by_update - 1)[update] <= _CLEAR * found.update_errors[update] + 2e-7).all()
    if still and abs(constant - 1) <= _CLEAR * error + 2e-7:
        return
    if (
        np.abs(found.by_update - constant)[update] <= _CLEAR * found.update_errors[update] + 1e-6 * abs(constant)
    ).all():
        yield from _constant(edit, found, float(constant), float(error))
    else:
        yield from _course(edit, found)


def _floor(edit: Edit) -> Array:
    """Return a standard deviation of rates' rounding: 1 − beta^t is computed in binary32 by some."""
    steps = np.arange(1, len(edit.a.rates) + 1)
    floor = np.full(len(steps), 1e-7)
    for name, share in (("beta1", 1.0), ("beta2", 0.5)):
        for side in (edit.a, edit.b):
            if 0 < side.numbers.get(name, 0.0) < 1:
                floor += share * _ONE / (1 - side.numbers[name] ** steps) / 6
    return floor


def _averaged(values: Array, errors: Array, axis: int) -> tuple[Array, Array]:
    """Average by inverse squares of the errors; NaN where all errors are infinite."""
    weights = np.where(np.isfinite(values) & np.isfinite(errors), 1 / errors**2, 0.0)
    total = weights.sum(axis=axis)
    mean = (np.where(weights > 0, values, 0.0) * weights).sum(axis=axis) / total
    return mean, 1 / np.sqrt(total)


def _separated(ratio: Array, error: Array) -> tuple[Array, Array, Array, Array, float]:
    """Split ratios into a course over updates and a factor of each key, which are 1 in the middle."""
    factors = np.ones(ratio.shape[1])
    for _ in range(8):
        by_update, update_errors = _averaged(ratio / factors, error / np.abs(factors), axis=1)
        course = np.where(np.isfinite(by_update) & (by_update != 0), by_update, np.nan)[:, None]
        by_key, key_errors = _averaged(ratio / course, error / np.abs(course), axis=0)
        known = by_key[np.isfinite(by_key) & (key_errors < 1e-2)]
        middle = float(np.median(known)) if known.size else 1.0
        factors = np.where(np.isfinite(by_key) & (by_key != 0), by_key / (middle or 1.0), 1.0)
    rest = np.abs(ratio - course * factors) / error
    return (
        by_update,
        update_errors,
        factors,
        key_errors,
        float(np.sqrt(np.nanmean(np.where(np.isfinite(rest), rest, np.nan) ** 2))),
    )


def _groups(found: Ratios, live: Array) -> Cause:
    factors = found.by_key * float(np.nanmedian(found.by_update))
    order = np.argsort(-np.abs(np.log(np.maximum(np.abs(factors), 1e-12))) * live, kind="stable")
    lines = tuple(f"{inert(found.names[k])}: {number(float(factors[k]))} ×" for k in order[:5])
    same = [inert(found.names[k]) for k in np.flatnonzero(live & (np.abs(factors - 1) < 1e-5))]
    least, most = (number(float(bound)) for bound in (factors[live].min(), factors[live].max()))
    rest = f"; {len(same)} keys, such as {same[0]}, have the same rate in both" if same else ""
    sentence = f"Learning rates differ by parameter: the second's is {least} to {most} times the first's{rest}."
    return Cause("learning-rate-groups", sentence, lines, 0.9)


def _constant(edit: Edit, found: Ratios, constant: float, error: float) -> Iterator[Cause]:
    a, b = (float(np.nanmedian(side)) for side in found.rates)
    line = (
        f"ratio of rates {number(constant)} ± {error:.1g} at each of {int(np.isfinite(found.by_update).sum())} updates"
    )
    if constant < 0:
        yield Cause("update-sign", f"Updates have the other sign, {number(constant)} times the first's.", (line,), 0.95)
        return
    plain = Cause(
        "learning-rate", f"The learning rate is {number(a)} in one and {number(b)} in the other.", (line,), 0.9
    )
    momentum = edit.a.numbers.get("momentum", edit.a.numbers.get("beta1", 0.0))
    damped = 1 - momentum
    if momentum > 0.05 and any(abs(constant - each) < 3e-5 * each for each in (damped, 1 / damped)):
        words = "which is 1 − momentum or one over it: the buffer is an average in one and a sum in the other"
        sentence = f"Updates are {number(constant)} times the first's, {words}."
        yield Cause("momentum-convention", sentence, (line, f"momentum {number(momentum)}"), 0.92)
        yield Cause(plain.id, plain.sentence, plain.evidence, 0.7)
        return
    if abs(constant - 1) < _binary32(edit):
        sentence = f"{plain.sentence} So little may also be how 1 − betaᵗ is rounded in binary32."
        plain = Cause(plain.id, sentence, plain.evidence, 0.45)
    yield plain


def _binary32(edit: Edit) -> float:
    """Return how far updates may be apart, at all updates alike, where 1 − betaᵗ is computed of a beta in binary32."""
    shares = (("beta1", 1.0), ("beta2", 0.5))
    return sum(share * _ONE / 2 / max(1 - edit.a.numbers.get(name, 0.0), 1e-6) for name, share in shares)


def _course(edit: Edit, found: Ratios) -> Iterator[Cause]:
    """Name a ratio that moves: a curve of the moments' corrections, a schedule a step away, another schedule."""
    course = ", ".join(number(float(value)) for value in found.by_update[:6])
    correction = _correction(edit, found)
    if correction:
        sentence = f"The moments' bias correction differs: the ratio of updates follows {correction}."
        yield Cause("bias-correction", sentence, (f"ratio by update: {course}, …",), 0.93)
    lines = tuple(
        f"rates of {who}: {', '.join(number(float(value)) for value in side[:6])}"
        for who, side in zip(("the first", "the second"), found.rates, strict=True)
    )
    for offset in (1, -1, 2, -2):
        if _offset_fits(found, offset):
            side, by = ("ahead of", "early") if offset > 0 else ("behind", "late")
            steps = f"{abs(offset)} update{'s' if abs(offset) > 1 else ''}"
            sentence = f"The schedule is {steps} {by}: the second's rates are {side} the first's."
            yield Cause("schedule-offset", sentence, lines, 0.92)
            break
        if _offset_fits(replace(found, rates=found.rates[:, :_WARM_UP]), offset):
            sentence = (
                f"The schedule begins {abs(offset)} updates {'early' if offset > 0 else 'late'}, as in a warm-up."
            )
            yield Cause("schedule-offset", sentence, lines, 0.88)
            break
    yield Cause("schedule-shape", "The learning rates' ratio changes over updates.", lines, 0.7 if correction else 0.85)


def _offset_fits(found: Ratios, offset: int) -> bool:
    a, b = found.rates
    ahead, behind = (a[offset:], b[:-offset]) if offset > 0 else (a[:offset], b[-offset:])
    known = np.isfinite(ahead) & np.isfinite(behind)
    if known.sum() < 3 or np.ptp(ahead[known]) < 1e-5 * np.abs(ahead[known]).max():
        return False
    return bool(np.abs(ahead - behind)[known].max() < 2e-4 * np.abs(ahead[known]).max())


def _correction(edit: Edit, found: Ratios) -> str:
    """Return the formula that the ratio follows; empty if none does."""
    beta1, beta2 = edit.a.numbers.get("beta1", 0.0), edit.a.numbers.get("beta2", 0.0)
    if not 0 < beta2 < 1:
        return ""
    steps = np.arange(1, len(found.by_update) + 1)
    known = np.isfinite(found.by_update) & (found.update_errors < 1e-2)
    for name, curve in _corrections(beta1, beta2, steps):
        rest = np.log(np.abs(found.by_update / curve))[known]
        if rest.size >= 3 and np.isfinite(rest[1:]).all() and np.abs(rest[1:]).max() < 3e-4 and not abs(rest[0]) > 3e-3:
            return name
    return ""


def _corrections(beta1: float, beta2: float, steps: Array) -> Iterator[tuple[str, Array]]:
    def root(at: Array) -> Array:
        return np.sqrt(1 - beta2 ** np.maximum(at, 0.0))

    def lead(at: Array) -> Array:
        return 1 - beta1 ** np.maximum(at, 0.0)

    first, second = lead(steps), root(steps)
    yield "(1 − β₁ᵗ) / √(1 − β₂ᵗ): none in the second", first / second
    yield "√(1 − β₂ᵗ) / (1 − β₁ᵗ): none in the first", second / first
    yield "1 − β₁ᵗ: no correction of the first moment in the second", first
    yield "1 / (1 − β₁ᵗ): no correction of the first moment in the first", 1 / first
    yield "1 / √(1 − β₂ᵗ): no correction of the second moment in the second", 1 / second
    yield "√(1 − β₂ᵗ): no correction of the second moment in the first", second
    for by in (1, -1, 2):
        moved = steps + by
        yield f"the corrections of update t {by:+d} in the second", first / second * root(moved) / lead(moved)
        yield f"the corrections of update t {by:+d} in the first", second / first * lead(moved) / root(moved)
