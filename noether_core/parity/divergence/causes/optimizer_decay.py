"""Say how the weight decay of two fitted optimizers relates: which parameters have it, how strong, scaled by what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from noether_core.parity.divergence.causes.optimizer_fit import Fit, coupled_errors
from noether_core.parity.divergence.causes.optimizer_rule import Edit
from noether_core.parity.divergence.causes.optimizer_samples import Samples
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

Array = np.ndarray[Any, Any]

_CLEAR = 6.0
_ROUNDING = 5e-8  # of 1 less rate times decay in binary32, relative to the parameter


def decay_causes(edit: Edit, samples: tuple[Samples, Samples]) -> Iterator[Cause]:
    """Name what differs in weight decay, from the share of the parameter that each update takes away."""
    a, b, names = edit.a, edit.b, samples[0].names
    if "coupled" in a.recipe.flags and "coupled" in b.recipe.flags:
        errors = [
            coupled_errors(each, side) + 1e-5 * np.abs(side.coupled) for each, side in zip(samples, (a, b), strict=True)
        ]
        yield from _compared(a.coupled, b.coupled, errors[0], errors[1], names, "")
        return
    if "coupled" in a.recipe.flags or "coupled" in b.recipe.flags:
        yield from _in_one(edit, samples)
        return
    (one, one_error), (other, other_error) = (_mean(side.decays, side.decay_errors) for side in (a, b))
    course = _course(edit, one, one_error, other, other_error)
    if course:
        yield Cause("decay-coupled", course, _lines(names, one, other, "share of the parameter an update"), 0.94)
        return
    (scaled, scaled_error), (scaled_other, other_scaled_error) = (_strength(side) for side in (a, b))
    same = (
        np.abs(one - other) <= _CLEAR * np.hypot(one_error, other_error) + _ROUNDING
    )  # what is taken away is the same
    scaled_other = np.where(same, scaled, scaled_other)
    hint = _unscaled(one, other, [float(np.nanmedian(side.rates)) for side in (a, b)])
    yield from _compared(scaled, scaled_other, scaled_error, other_scaled_error, names, hint)


def has_decay(side: Fit) -> bool:
    """Tell whether parameters shrink beside what the gradient does to them."""
    mean, error = _mean(side.decays, side.decay_errors)
    return bool((np.abs(mean) > _CLEAR * error + _ROUNDING).any())


def _in_one(edit: Edit, samples: tuple[Samples, Samples]) -> Iterator[Cause]:
    """Name decay that one side has in the gradient, and the other has not at all."""
    index = 0 if "coupled" in edit.a.recipe.flags else 1
    side, other = (edit.a, edit.b)[:: 1 - 2 * index]
    errors = coupled_errors(samples[index], side)
    if has_decay(other) or not (np.abs(side.coupled) > _CLEAR * errors).any():
        return
    zeros = np.zeros_like(side.coupled)
    strengths = (side.coupled, zeros)[:: 1 - 2 * index]
    yield from _compared(strengths[0], strengths[1], errors, errors, samples[0].names, "")


def _strength(side: Fit) -> tuple[Array, Array]:
    """Return decay over rate by key, and its error: rounding of 1 − rate · decay does not average out."""
    rates = np.where(side.rates == 0, np.nan, side.rates)
    errors = side.decay_errors / np.abs(rates)
    mean, error = _mean(side.decays / rates, np.where(np.isfinite(errors), errors, np.inf))
    size = float(np.nanmedian(np.abs(rates))) if np.isfinite(rates).any() else 1.0
    return mean, error + _ROUNDING / _CLEAR / size


def _mean(values: Array, errors: Array) -> tuple[Array, Array]:
    weights = np.where(np.isfinite(errors) & np.isfinite(values), 1 / errors**2, 0.0)
    total = weights.sum(axis=0)
    known = total > 0
    mean = np.where(
        known, (np.where(weights > 0, values, 0.0) * weights).sum(axis=0) / np.where(known, total, 1.0), 0.0
    )
    return mean, np.where(known, 1 / np.sqrt(np.where(known, total, 1.0)), np.inf)


def _compared(
    one: Array, other: Array, one_error: Array, other_error: Array, names: tuple[str, ...], hint: str
) -> Iterator[Cause]:
    known = np.isfinite(one_error) & np.isfinite(other_error)
    has_a, has_b = (
        known & (np.abs(value) > _CLEAR * error) for value, error in ((one, one_error), (other, other_error))
    )
    error = np.hypot(one_error, other_error)
    apart = known & (has_a | has_b) & (np.abs(one - other) > _CLEAR * error)
    if not apart.any():
        return
    lines = _lines(names, one, other, "decay")
    masked, both = apart & (has_a != has_b), has_a & has_b
    largest = int(np.argmax(np.where(apart, np.abs(one - other), -1.0)))
    strengths = f"{number(float(one[largest]))} in one and {number(float(other[largest]))} in the other"
    values = f"{strengths} for {inert(names[largest])}"
    if masked.any() and (both & ~apart).any():
        lone = [inert(names[k]) for k in np.flatnonzero(masked)]
        sentence = (
            f"Weight decay holds for other parameters: {len(lone)}, such as {lone[0]}, have it in one alone ({values})."
        )
        yield Cause("decay-mask", sentence, lines, 0.94)
        yield Cause("decay-value", f"Weight decay is {values}.", lines, 0.5)
        return
    some = apart.any() and (both & ~apart).any()
    yield Cause("decay-value", f"Weight decay is {values}{hint}.", lines, 0.7 if some else 0.93)
    if some or (masked.any() and not both.any() and not masked[known].all()):
        yield Cause(
            "decay-mask",
            f"Weight decay differs for {int(apart.sum())} of {int(known.sum())} keys alone: {values}.",
            lines,
            0.75,
        )


def _lines(names: tuple[str, ...], one: Array, other: Array, what: str) -> tuple[str, ...]:
    order = np.argsort(-np.abs(one - other), kind="stable")[:5]
    return tuple(f"{inert(names[k])}: {what} {number(float(one[k]))} and {number(float(other[k]))}" for k in order)


def _unscaled(one: Array, other: Array, rates: list[float]) -> str:
    """Say so if one side's decay is the other's without the rate."""
    size = np.abs(one) > 1e-9
    if not size.any() or not all(rates):
        return ""
    ratio = float(np.median(other[size] / one[size]))
    for rate in rates:
        for scale, who in ((1 / rate, "second"), (rate, "first")):
            if abs(ratio / scale - 1) < 1e-2 and abs(scale - 1) > 0.1:
                return f": the {who} does not scale it by the learning rate"
    return ""


def _course(edit: Edit, one: Array, one_error: Array, other: Array, other_error: Array) -> str:
    """Say so if decay grows in one as what a momentum's buffer has of it: (1 − mᵗ) / (1 − m) times the first's share."""
    momentum = edit.a.numbers.get("momentum", 0.0)
    if edit.a.recipe.family != "sgd" or not 0 < momentum < 1:
        return ""
    growth = (1 - momentum ** np.arange(1, len(edit.a.decays) + 1)) / (1 - momentum)
    shares = [side.decays / np.where(side.rates == 0, np.nan, side.rates) for side in (edit.a, edit.b)]
    best = int(
        np.argmin(
            np.where(
                np.abs(one) + np.abs(other) > 0,
                (one_error + other_error) / (np.abs(one) + np.abs(other) + 1e-30),
                np.inf,
            )
        )
    )
    kinds = []
    for share in shares:
        series = share[:, best]
        rest = [
            float(np.linalg.norm(series - curve * (series @ curve) / (curve @ curve)))
            for curve in (np.ones(len(series)), growth)
        ]
        if not np.isfinite(rest).all() or max(rest) < 1e-2 * np.linalg.norm(series):
            return ""
        kinds.append("beside" if rest[0] < 0.2 * rest[1] else "in" if rest[1] < 0.2 * rest[0] else "")
    if set(kinds) != {"beside", "in"}:
        return ""
    who = "first" if kinds[0] == "in" else "second"
    return f"Weight decay is added to the gradient in the {who}, and so is in the buffer; it is beside it in the other."
