"""Name why running statistics differ: their momentum, their variance's bias, or averaged weights' decay."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from noether_core.parity.divergence.causes.case import Array, Case
from noether_core.parity.divergence.causes.measures import affine, distance
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

_ENDS = (".running_mean", ".running_var", ".num_batches_tracked", ".moving_mean", ".moving_variance")


def is_buffer(key: str) -> bool:
    """Tell whether a key is of a norm's running statistics.

    >>> is_buffer("opt/norm.running_mean"), is_buffer("opt/mu/norm.weight")
    (True, False)
    """
    return key.startswith("opt/") and key.endswith(_ENDS)


def buffer_causes(case: Case) -> list[Cause]:
    """Name why the running statistics that first differ do."""
    layer = case.first.key.rpartition(".")[0]
    found: list[Cause] = []
    for key in (f"{layer}.running_mean", f"{layer}.running_var", case.first.key):
        found += list(_momentum(case, key))
    found += list(_variance(case, f"{layer}.running_var"))
    found.append(Cause("buffer-other", f"{inert(case.first.key)} is kept otherwise.", (), 0.25))
    return found


def _before(case: Case, key: str) -> tuple[Array, Array] | None:
    """Return the statistics that the update found; zeros or ones at the first."""
    name = key.partition("/")[2]
    pair = case.pair(f"param/{name}") or case.pair(key, case.update - 1)
    now = case.pair(key)
    if pair is None and now is not None and case.update == 1:
        start = np.full_like(now[0], 1.0 if key.endswith("var") else 0.0)
        return start, start
    return pair


def _momentum(case: Case, key: str) -> Iterator[Cause]:
    """Compare how far statistics moved: a mean's steps are the same direction times 1 − momentum."""
    now, old = case.pair(key), _before(case, key)
    if now is None or old is None or case.agrees(key):
        return
    steps = now[0] - old[0], now[1] - old[1]
    square = float((steps[0] ** 2).sum())
    if not square:
        return
    ratio = float((steps[0] * steps[1]).sum()) / square
    left = distance(ratio * steps[0], steps[1])
    if left > 1e-3 or abs(ratio - 1) < 1e-4:
        return
    line = (f"steps of {inert(key)} are {number(ratio)} times the first's, left over {number(left)}",)
    words = f"Running statistics move {number(ratio)} times as far as the first's at each update"
    for momentum in (0.9, 0.99, 0.999, 0.95, 0.997, 0.8):
        for one, other in ((momentum, 1 - momentum), (1 - momentum, momentum)):
            if abs(ratio * one / other - 1) < 1e-3:
                words += f": momentum {number(momentum)} is taken for {number(1 - momentum)}"
    is_mean = not key.endswith("var")
    yield Cause("buffer-momentum", f"{words}.", line, 0.95 if is_mean else 0.6)


def _variance(case: Case, key: str) -> Iterator[Cause]:
    """Ask whether new variances are n / (n − 1) times the other's, the momentum being the same."""
    now, old = case.pair(key), _before(case, key)
    mean = key.replace("running_var", "running_mean")
    if now is None or old is None or case.agrees(key) or case.pair(mean) is None or now[0].size < 3:
        return
    if not all(np.isfinite(each).all() for each in (*now, *old)):
        return
    same_mean = case.agrees(mean)
    kept = (old[0], old[1]) if float(np.ptp(old[0])) else None
    slope, _, left = affine(now[0], now[1])
    if (
        kept is not None
    ):  # new = m times old + (1 less m) times v: regress one's new values on the other's and on the old
        columns = np.stack([now[0].reshape(-1), kept[0].reshape(-1)], axis=1)
        solved = np.linalg.lstsq(columns, now[1].reshape(-1), rcond=None)[0]
        slope, left = float(solved[0]), distance(columns @ solved, now[1].reshape(-1))
    counts = [slope / (slope - 1)] if slope > 1 else [1 / (1 - slope)] if slope < 1 else []
    line = (
        f"regressed on the first's, variances have slope {slope:.6g}, left over {number(left)}",
        f"means {'agree' if same_mean else 'differ'}",
    )
    if left < 1e-2 and counts and 1.5 < counts[0] < 1e7:
        count = round(counts[0])
        who = "second" if slope > 1 else "first"
        sentence = (
            f"The running variance is n / (n − 1) times the other's, n = {count}: it is unbiased in the {who} alone."
        )
        yield Cause("buffer-variance", sentence, line, 0.95 if same_mean else 0.5)
    elif same_mean:
        yield Cause("buffer-variance", f"{inert(key)} differs while the running means agree.", line, 0.6)
