"""Name why an update or an optimizer's state differs from that update alone, where its history explains nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from noether_core.parity.divergence.causes.case import Case
from noether_core.parity.divergence.causes.measures import distance, factor, short_share
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

_NEARLY = 0.1  # of updates, what is left of them beside a factor where trainings have begun to part
_CLEARLY = 3.0  # times what is left that a factor moves
_PARALLEL = 1e-4


def step_causes(case: Case) -> list[Cause]:
    """Name causes by the updates, or by the state, of the first update that differs."""
    if case.first.stage == "opt":
        return [*_state(case), Cause("optimizer-other", f"{inert(case.first.key)} is kept otherwise.", (), 0.15)]
    found = [*_precision(case), *_sloped(case)]
    found.append(Cause("optimizer-other", f"{inert(case.first.key)} differs while gradients agree.", (), 0.15))
    return found


def _state(case: Case) -> Iterator[Cause]:
    """Name a state that is kept by another convention: the updates agree, and it differs by a constant."""
    key = case.first.key
    if any(part in key.lower() for part in ("ema", "average", "swa")):
        yield Cause("weight-averaging", f"{inert(key)} is averaged otherwise.", _averaging(case), 0.85)
    pair = case.pair(key)
    if pair is None:
        return
    yield from _short(key, case)
    constant, left = factor(*pair)
    if left > _PARALLEL or not pair[0].any():
        return
    name = key.rpartition("/")[0]
    updates = [update for update in case.updates() if case.differing("update", update)]
    lines = (
        f"{number(constant)} times the first's, left over {number(left)}",
        f"updates differ at {len(updates)} updates",
    )
    if not updates:
        for cause, score in (("momentum-convention", 0.9), ("beta", 0.4)):
            yield Cause(
                cause,
                f"The state {inert(name)} is {number(constant)} times the first's, though updates agree: another convention.",
                lines,
                score,
            )
    else:
        for cause, score in (("beta", 0.5), ("momentum-convention", 0.45)):
            yield Cause(cause, f"The state {inert(name)} is {number(constant)} times the first's.", lines, score)


def _averaging(case: Case) -> tuple[str, ...]:
    """Estimate the averages' decay: the new average is decay · old + (1 − decay) · new parameter."""
    key = case.first.key
    name = key.rpartition("/")[2]
    lines = []
    for who, side in (("first", case.a), ("second", case.b)):
        for update in case.updates()[1:6]:
            old, now, parameter, step = (
                side.array(at, each)
                for at, each in (
                    (update - 1, key),
                    (update, key),
                    (update, f"param/{name}"),
                    (update, f"update/{name}"),
                )
            )
            if old is None or now is None or parameter is None or step is None:
                continue
            fresh = parameter.astype(np.float64) + step
            share, left = factor(fresh - old, now.astype(np.float64) - old)
            lines.append(f"the {who}: moves by {number(share)} of the way at update {update}, left over {number(left)}")
    return tuple(lines[:6])


def _short(key: str, case: Case) -> Iterator[Cause]:
    raw = case.raw(key)
    if raw is None:
        return
    shares = [short_share(side) for side in raw]
    if max(shares) > 0.9 and min(shares) < 0.5:
        line = (f"values whose low 13 bits are zero: {shares[0]:.0%} and {shares[1]:.0%}",)
        yield Cause("low-precision", f"{inert(key)} is kept in a lower precision in one.", line, 0.97)


def _precision(case: Case) -> Iterator[Cause]:
    """Name parameters, or a state, that are kept in a lower precision: their values' low bits are zero."""
    for stage in ("param", "opt"):
        at = case.update + (stage == "param")
        for key in case.keys(stage, at):
            raw = case.raw(key, at)
            if raw is None or raw[0].size < 8:
                continue
            shares = [short_share(side) for side in raw]
            if max(shares) > 0.9 and min(shares) < 0.5 and not _short_gradients(case, key):
                line = (f"values whose low 13 bits are zero: {shares[0]:.0%} and {shares[1]:.0%}",)
                yield Cause("low-precision", f"{inert(key)} is kept in a lower precision in one.", line, 0.97)
                return


def _short_gradients(case: Case, key: str) -> bool:
    """Tell whether a state's gradients are short themselves, as those that are zero but for rounding are."""
    name = key.rpartition("/")[2]
    raw = case.raw(f"clip/{name}") or case.raw(f"grad/{name}")
    return raw is not None and max(short_share(side) for side in raw) > 0.5


def _moving(case: Case, constant: float) -> Iterator[Cause]:
    """Name a schedule where the factor of all updates is another before or later, as long as they are still nearly parallel."""
    factors, furthest = [1.0] if any(each < case.update for each in case.updates()) else [], 0.0
    for update in (each for each in case.updates() if each >= case.update):
        pairs = [pair for key in case.keys("update", update) if (pair := case.some(key, update)) is not None]
        x, y = (np.concatenate([pair[side] for pair in pairs]) if pairs else np.zeros(1) for side in (0, 1))
        found, left = factor(x, y)
        if not x.any() or left > _NEARLY:
            break
        factors.append(found)
        furthest = max(furthest, left)
    moved = max((abs(each / constant - 1) for each in factors), default=0.0)
    if moved > max(_CLEARLY * furthest, 1e-4):
        line = (f"factors {', '.join(map(number, factors[:6]))}, left over at most {number(furthest)}",)
        for cause, score in (("schedule-shape", 0.55), ("schedule-offset", 0.52)):
            yield Cause(cause, "Updates are a factor of the first's that changes over updates.", line, score)


def _sloped(case: Case) -> Iterator[Cause]:
    """Name one factor of all updates, or one a key, and what is a multiple of the parameter."""
    fits: dict[str, tuple[float, float]] = {}
    decays: dict[str, float] = {}
    for key in case.keys("update"):
        pair, parameter = case.some(key), case.some("param/" + key.partition("/")[2])
        if pair is None or case.agrees(key) or not pair[0].any():
            continue
        fits[key] = factor(*pair)
        if parameter is not None and parameter[0].any():
            decay, left = factor(parameter[0], pair[1] - pair[0])
            if left < 0.05:
                decays[key] = decay
    if not fits:
        return
    constants = np.array([fit[0] for fit in fits.values()])
    even = float(np.ptp(constants)) < 1e-4 * float(np.abs(constants).max())
    constant = float(np.median(constants))
    line = (f"{number(constant)} times, left over {number(max(fit[1] for fit in fits.values()))}",)
    if (
        max(fit[1] for fit in fits.values()) < 1e-3
        and distance(constants, np.full_like(constants, constant)) < 1e-3
        and even
    ):
        cause = "update-sign" if constant < 0 else "learning-rate"
        yield Cause(cause, f"Updates are {number(constant)} times the first's at update {case.update}.", line, 0.5)
        yield from _moving(case, constant)
    if len(decays) > 0.5 * len(fits):
        value = float(np.median(list(decays.values())))
        lines = tuple(f"{inert(key)}: {number(decay)} times the parameter" for key, decay in list(decays.items())[:5])
        yield Cause("decay-value", f"Updates differ by {number(value)} times their parameters.", lines, 0.5)
        yield Cause(
            "decay-mask", f"Updates of {len(decays)} keys differ by {number(value)} times their parameters.", lines, 0.4
        )
