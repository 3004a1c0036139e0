"""Name why gradients differ while activations and loss agree: a factor, a stop, a leftover, a penalty, precision."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from noether_core.parity.divergence.causes.case import Array, Case, thinned
from noether_core.parity.divergence.causes.measures import distance, factor, short_share
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

_PARALLEL = 1e-5


def gradient_causes(case: Case) -> list[Cause]:
    """Name why the gradients that first differ do."""
    pairs = {key: pair for key in case.keys("grad") if (pair := case.some(key)) is not None}
    apart = {key: pair for key, pair in pairs.items() if not case.agrees(key)}
    found = list(_missing(case))
    if apart:
        found += [
            *_stopped(apart, len(pairs)),
            *_partly_stopped(case, list(apart)),
            *_factors(case, apart, len(pairs)),
            *_accumulated(case, apart),
            *_decayed(case, apart),
        ]
        found += [*_clipped(pairs), *_precision(case, apart), *_noise(apart), *_rows(case)]
    found.append(Cause("gradient-other", _where(case, list(apart)), (), 0.35))
    if not _agreeing(case):
        words = "Neither activations nor losses were compared: the forward pass or the loss may differ. Probe these in both."
        found.append(Cause("forward-other", words, (), 0.55))
    return found


def _agreeing(case: Case) -> str:
    """Name what was compared before the gradients, and agrees."""
    return " and ".join(word for stage, word in (("act", "activations"), ("loss", "loss")) if case.keys(stage))


def _missing(case: Case) -> Iterator[Cause]:
    a, b = ({key for key in side.keys(case.update) if key.startswith("grad/")} for side in (case.a, case.b))
    lone = sorted(a ^ b)
    if lone:
        yield Cause("gradient-stopped", f"{inert(lone[0])} is in one alone ({len(lone)} such gradients).", (), 0.7)


def _stopped(apart: dict[str, tuple[Array, Array]], count: int) -> Iterator[Cause]:
    lone = [key for key, (x, y) in apart.items() if bool(x.any()) != bool(y.any())]
    if lone:
        who = "first" if apart[lone[0]][1].any() else "second"
        sentence = f"{inert(lone[0])} is zero in the {who} alone ({len(lone)} of {count} gradients): stopped or frozen."
        yield Cause("gradient-stopped", sentence, tuple(map(inert, lone[:5])), 0.96)
        yield Cause("frozen-parameter", sentence, (), 0.5)


def _partly_stopped(case: Case, apart: list[str]) -> Iterator[Cause]:
    """Name a gradient of which whole rows are zero in one alone, such as a third of a fused projection."""
    for key in apart:
        raw = case.raw(key)
        if raw is None or raw[0].shape != raw[1].shape or not raw[0].ndim:
            continue
        lives = [np.abs(side.reshape(len(side), -1)).max(axis=1) > 0 for side in raw]
        for who, zero, other in (("first", 0, 1), ("second", 1, 0)):
            lone = lives[other] & ~lives[zero]
            if lone.any() and not (lives[zero] & ~lives[other]).any():
                places = np.flatnonzero(lone)
                where = f"{len(places)} of its {len(lone)} rows, from {places[0]} to {places[-1]},"
                sentence = f"{inert(key)}: {where} are zero in the {who} alone: a part of it is stopped or frozen."
                yield Cause("gradient-stopped", sentence, (), 0.9)
                return


def _factors(case: Case, apart: dict[str, tuple[Array, Array]], count: int) -> Iterator[Cause]:
    """Name one factor of all gradients, or one for each of some."""
    fits = {key: factor(x, y) for key, (x, y) in apart.items() if x.any() and y.any()}
    sizes = {key: float(np.linalg.norm(apart[key][0])) for key in fits}
    most = max(sizes.values(), default=0.0)
    large = {key: fit for key, fit in fits.items() if sizes[key] > 1e-4 * most}
    if not large or len(fits) < len(apart):
        return
    left = float(np.median([fit[1] for fit in large.values()]))
    constants = np.array([fit[0] for fit in large.values()])
    if max(fit[1] for fit in large.values()) > 100 * _PARALLEL or left > _PARALLEL:
        return
    constant = float(np.median(constants))
    if abs(constant - 1) < 10 * left:  # it is no factor, if what it leaves is as large
        return
    even = float(np.abs(constants / constant - 1).max()) < 10 * _PARALLEL
    lines = (f"{len(apart)} of {count} gradients; factor {number(constant)}, left over {number(left)}", *_course(case))
    if even and len(large) > 0.8 * count:
        whole = any(abs(each - round(each)) < 1e-4 and 2 <= round(each) <= 1024 for each in (constant, 1 / constant))
        sentence = f"All gradients are {number(constant)} times the first's"
        sentence += ", while the loss agrees" if case.keys("loss") else ""
        steps = round(max(constant, 1 / constant))
        accumulation = f"{sentence}: {steps} accumulation steps or devices are summed in one and averaged in the other."
        if whole:
            yield Cause("accumulation", accumulation, lines, 0.93)
        yield Cause("gradient-factor", f"{sentence}.", lines, 0.85 if whole else 0.93)
        norms = [float(np.sqrt(sum(float((pair[side] ** 2).sum()) for pair in apart.values()))) for side in (0, 1)]
        if not whole and constant != 1:
            small = number(min(norms))
            yield Cause(
                "clip-missing", f"{sentence}: they may be clipped, to a norm of {small}, in one alone.", lines, 0.6
            )
    else:
        names = ", ".join(inert(key) for key in list(large)[:3])
        yield Cause(
            "gradient-factor", f"Some gradients have another factor, {number(constant)}: {names} …", lines, 0.85
        )


def _course(case: Case) -> tuple[str, ...]:
    """Say whether the factor is that of the first difference at the next update too."""
    key = case.first.key
    pair = case.some(key, case.update + 1)
    if pair is None or not pair[0].any():
        return ()
    return (
        f"at the next update the norms' ratio is {number(float(np.linalg.norm(pair[1]) / np.linalg.norm(pair[0])))}",
    )


def _accumulated(case: Case, apart: dict[str, tuple[Array, Array]]) -> Iterator[Cause]:
    """Ask whether one side's gradient is the other's plus its own of the update before: nobody set it to zero."""
    for who, mine, other in (("second", 1, 0), ("first", 0, 1)):
        lefts = []
        for key, pair in apart.items():
            before = (case.b, case.a)[other].array(case.update - 1, key)
            if before is None:
                continue
            gap, last = pair[mine] - pair[other], thinned(before)
            if gap.shape == last.shape and last.any():
                constant, left = factor(last, gap)
                lefts.append((left, constant))
        if lefts and np.median([left for left, _ in lefts]) < 1e-3:
            constant = float(np.median([each for _, each in lefts]))
            share = "" if abs(constant - 1) < 1e-3 else f"{number(constant)} times "
            sentence = f"The {who}'s gradients hold {share}those of the update before: none set them to zero."
            yield Cause(
                "accumulation", sentence, (f"left over {number(float(np.median([left for left, _ in lefts])))}",), 0.96
            )
            return


def _decayed(case: Case, apart: dict[str, tuple[Array, Array]]) -> Iterator[Cause]:
    """Ask whether the gradients differ by a multiple of their parameters: a penalty in one."""
    constants = {}
    for key, (x, y) in apart.items():
        parameter = case.some("param/" + key.partition("/")[2])
        if parameter is None or not parameter[0].any():
            continue
        constant, left = factor(parameter[0], y - x)
        if left < 1e-2:
            constants[key] = constant
    if len(constants) > 0.5 * len(apart):
        value = float(np.median(list(constants.values())))
        lines = tuple(
            f"{inert(key)}: {number(constant)} times the parameter" for key, constant in list(constants.items())[:5]
        )
        sentence = (
            f"The gradients differ by {number(value)} times their parameters: they hold weight decay in one alone."
        )
        yield Cause("decay-coupled", sentence, lines, 0.93)
        yield Cause("decay-value", sentence, lines, 0.8)


def _clipped(pairs: dict[str, tuple[Array, Array]]) -> Iterator[Cause]:
    """Ask whether one side's gradients are the other's, cut at a value."""
    for who, mine, other in (("second", 1, 0), ("first", 0, 1)):
        bound = max(float(np.abs(pair[mine]).max()) for pair in pairs.values())
        free = max(float(np.abs(pair[other]).max()) for pair in pairs.values())
        if bound < 0.999 * free and all(
            distance(np.clip(pair[other], -bound, bound), pair[mine]) < 1e-4 for pair in pairs.values()
        ):
            yield Cause("clip-by-value", f"The {who}'s gradients are the other's, cut at {number(bound)}.", (), 0.95)
            return


def _precision(case: Case, apart: dict[str, tuple[Array, Array]]) -> Iterator[Cause]:
    shares = [
        short_share(np.concatenate([pair[side] for pair in apart.values()]).astype(np.float32)) for side in (0, 1)
    ]
    gaps = [distance(*pair) for pair in apart.values()]
    line = (f"values whose low 13 bits are zero: {shares[0]:.0%} and {shares[1]:.0%}",)
    if max(shares) > 0.9 and min(shares) < 0.5:
        yield Cause("low-precision", "Gradients hold values of lower precision in one.", line, 0.96)
    elif np.median(gaps) < 2e-2 and len(apart) > 2:
        yield Cause(
            "low-precision",
            f"Gradients differ by {number(float(np.median(gaps)))}, as if computed in lower precision.",
            line,
            0.45,
        )


def _noise(apart: dict[str, tuple[Array, Array]]) -> Iterator[Cause]:
    """Name gradients that are unlike: other elements are left out of the loss, or another function is differentiated."""
    likes = [
        float((x * y).sum() / (np.linalg.norm(x) * np.linalg.norm(y))) for x, y in apart.values() if x.any() and y.any()
    ]
    if likes and float(np.median(likes)) < -0.999:
        yield Cause("update-sign", "Gradients have the other sign.", (), 0.8)


def _rows(case: Case) -> Iterator[Cause]:
    """Name a difference that begins at a layer: the first key in backward order, and those after it that agree."""
    keys = case.keys("grad")
    apart = [not case.agrees(key) for key in keys]
    if any(apart) and not all(apart):
        last = max(index for index, each in enumerate(apart) if each)
        if last < len(keys) - 1:
            after, here = inert(keys[last + 1]), inert(keys[last])
            sentence = f"Gradients agree from {after} on, and differ before it: the backward pass parts at {here}."
            yield Cause("gradient-other", sentence, (f"{sum(apart)} of {len(keys)} gradients differ",), 0.5)


def _where(case: Case, apart: list[str]) -> str:
    shown = ", ".join(inert(key) for key in apart[:3]) or inert(case.first.key)
    agreeing = _agreeing(case)
    while_ = f" while {agreeing} agree{'s' * (agreeing == 'loss')}" if agreeing else ""
    return f"Gradients differ{while_}: {shown}{' …' if len(apart) > 3 else ''}"
