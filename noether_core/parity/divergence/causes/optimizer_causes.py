"""Name what differs between two optimizers, from what each was seen to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from noether_core.parity.divergence.causes.case import Case
from noether_core.parity.divergence.causes.optimizer_clips import clip_of, hidden_clip_causes, unclipped
from noether_core.parity.divergence.causes.optimizer_decay import decay_causes, has_decay
from noether_core.parity.divergence.causes.optimizer_fit import evaluate
from noether_core.parity.divergence.causes.optimizer_rates import rate_causes, ratios
from noether_core.parity.divergence.causes.optimizer_rule import Edit, Fits, edits, identify, known
from noether_core.parity.divergence.causes.optimizer_samples import Samples, gather
from noether_core.parity.divergence.result import Cause
from noether_core.text import inert, number

_FLAG_CAUSES = {
    "belief": "second-moment",
    "centred": "second-moment",
    "corrected": "bias-correction",
    "corrected maximum": "second-moment",
    "coupled": "decay-coupled",
    "damped later": "momentum-convention",
    "inside": "epsilon-place",
    "maximum": "second-moment",
    "momentum": "momentum-value",
    "nesterov": "nesterov",
    "rate in buffer": "momentum-convention",
    "rectified": "optimizer-other",
    "scheduled nesterov": "optimizer-other",
    "started": "second-moment",
    "uncorrected epsilon": "epsilon-place",
}
_FLAG_WORDS = {
    "belief": "The second moment is of the gradient's distance from its mean",
    "centred": "The squared mean is subtracted from the second moment",
    "corrected": "The second moment is corrected for its start",
    "corrected maximum": "The maximum of the corrected second moment is used (AMSGrad)",
    "coupled": "Weight decay is added to the gradient",
    "damped later": "Gradients enter the momentum's buffer times 1 − dampening, the first one whole",
    "inside": "Epsilon is added under the root",
    "maximum": "The second moment's maximum is used (AMSGrad)",
    "momentum": "Scaled gradients have a momentum",
    "nesterov": "The momentum is Nesterov's",
    "rate in buffer": "The momentum's buffer holds gradients times their learning rates",
    "rectified": "Updates are rectified while the second moment is uncertain (RAdam)",
    "scheduled nesterov": "The momentum is Nesterov's, and grows over updates (NAdam as in PyTorch)",
    "started": "The second moment starts from one",
    "uncorrected epsilon": "Epsilon is added before the second moment is corrected",
}
_NUMBER_CAUSES = {
    "beta1": "beta",
    "beta2": "beta",
    "dampening": "momentum-convention",
    "epsilon": "epsilon-value",
    "momentum": "momentum-value",
    "momentum decay": "momentum-value",
    "start": "second-moment",
}
_NUMBER_WORDS = {
    "beta1": "β₁",
    "beta2": "the second moment's rate",
    "dampening": "dampening",
    "epsilon": "epsilon",
    "momentum": "momentum",
    "momentum decay": "the decay of the momentum's schedule",
    "start": "the second moment's start",
}
_ALIKE = 0.3  # of the score, where no difference at all explains both as well
_OF_SOME = 0.9  # of the score, of parameters that have an optimizer of their own
_SCALED = 0.5  # of the score, where clipping leaves the rates unknown but for a factor
_EVEN = 1e-3  # an epsilon farther from the other is likelier one that is not to be seen, and the same at another place
_LESS = 0.1  # of the score, for each further change that an explanation needs


def optimizer_causes(case: Case) -> list[Cause]:
    """Name what differs between the optimizers; nothing if gradients, parameters or updates were not kept from update 1 on."""
    sampled = gather(case.a, case.b)
    if sampled is None:
        return []
    a, b, frozen = _without_frozen(*sampled)
    if frozen is not None and (len(a.names) == 0 or case.first.key.partition("/")[2] in frozen[1]):
        return [frozen[0]]
    found = [frozen[0]] if frozen else []
    if not a.names or len(a.gradients) < 2:
        return found
    fits_a, fits_b = identify(a, b)
    clips = clip_of(case.a, a, fits_a, fits_b), clip_of(case.b, b, fits_b, fits_a)
    found += list(hidden_clip_causes(case, *clips))
    if any(clip.is_hidden for clip in clips):
        a, b = unclipped(a, case.a, clips[0]), unclipped(b, case.b, clips[1])
        fits_a, fits_b = identify(a, b)
    found += list(_reset(case, a, b, fits_a, fits_b))
    if not (known(fits_a) and known(fits_b)):
        return [*found, *_unknown(fits_a, fits_b), *_of_some(case, a, b)]
    return [*found, *_named(a, b, fits_a, fits_b, _SCALED if any(clip.is_scaled for clip in clips) else 1.0)]


def _named(a: Samples, b: Samples, fits_a: Fits, fits_b: Fits, most: float) -> Iterator[Cause]:
    """Name what leads from one side's optimizer to the other's, where both are known; scores are `most` at most."""
    explanations = [list(_explained(edit, (a, b))) for edit in edits(a, b, fits_a, fits_b)[:3]]
    share = _ALIKE if explanations and not explanations[0] else 1.0
    for cause in (each for causes in explanations for each in causes):
        yield replace(cause, score=min(share, most) * cause.score)


def _of_some(case: Case, a: Samples, b: Samples) -> Iterator[Cause]:
    """Name what differs for vectors, or for matrices, where the others' optimizer is not known: as with Muon, which has two."""
    arrays = [case.a.array(1, f"param/{name}") for name in a.names]
    flat = np.array([array is not None and array.ndim < 2 for array in arrays])
    for keep in (flat, ~flat):
        if keep.all() or not (keep & a.counted & b.counted).any():
            continue
        one, other = a.chosen(keep), b.chosen(keep)
        fits = identify(one, other)
        if known(fits[0]) and known(fits[1]):
            yield from _named(one, other, *fits, _OF_SOME)


def _explained(edit: Edit, samples: tuple[Samples, Samples]) -> Iterator[Cause]:
    causes = [
        *_family(edit),
        *_flags(edit),
        *_numbers(edit),
        *rate_causes(edit, ratios(edit, samples[0].names)),
        *decay_causes(edit, samples),
    ]
    ids = {cause.id for cause in causes}
    if "bias-correction" in ids:  # where epsilon stands follows from it
        causes = [cause for cause in causes if cause.id != "epsilon-place"]
    changes = len({cause.id for cause in causes if cause.score > 0.8})
    lines = _described(edit)
    for cause in causes:
        score = cause.score * edit.quality - _LESS * max(0, changes - 1)
        if "optimizer-other" in ids and cause.id != "optimizer-other":
            score *= 0.6
        yield Cause(cause.id, cause.sentence, (*cause.evidence, *lines), max(0.05, score))


def _described(edit: Edit) -> tuple[str, ...]:
    lines = []
    for who, side in (("the first", edit.a), ("the second", edit.b)):
        numbers = ", ".join(f"{_NUMBER_WORDS[name]} {number(value)}" for name, value in side.numbers.items())
        flags = f" ({', '.join(sorted(side.recipe.flags))})" if side.recipe.flags else ""
        lines.append(f"{who}: {side.recipe.family}{flags}, {numbers}; left over {number(side.misfit)} rounding errors")
    return tuple(lines)


def _family(edit: Edit) -> Iterator[Cause]:
    a, b = edit.a.recipe, edit.b.recipe
    if a.family != b.family:
        yield Cause("optimizer-other", f"The optimizers are of other families: {a.family} and {b.family}.", (), 1.0)


def _flags(edit: Edit) -> Iterator[Cause]:
    if edit.a.recipe.family != edit.b.recipe.family:
        return
    for flag in edit.flags:
        who = "first" if flag in edit.a.recipe.flags else "second"
        score = 0.93
        if flag == "coupled" and not has_decay(edit.b if who == "first" else edit.a):
            continue  # it is decay's strength that differs, if anything: there is none in the other
        yield Cause(_FLAG_CAUSES[flag], f"{_FLAG_WORDS[flag]} in the {who} alone.", (), score)


def _numbers(edit: Edit) -> Iterator[Cause]:
    for name in edit.numbers:
        one, other = edit.a.numbers[name], edit.b.numbers[name]
        sentence = f"{_NUMBER_WORDS[name]} is {number(one)} in one and {number(other)} in the other."
        yield Cause(_NUMBER_CAUSES[name], sentence[0].upper() + sentence[1:], (), _number_score(name, one, other))


def _number_score(name: str, one: float, other: float) -> float:
    if name == "epsilon" and not _EVEN < one / other < 1 / _EVEN:
        return 0.8
    return 0.95 if _is_round(one) and _is_round(other) else 0.9


def _is_round(value: float) -> bool:
    """Tell whether a person may have chosen a number: one digit, to a hundredth of it."""
    return value > 0 and bool(np.isclose(value, float(f"{value:.0e}"), rtol=1e-2))


def _unknown(fits_a: Fits, fits_b: Fits) -> Iterator[Cause]:
    words = []
    for who, fits in (("first", fits_a), ("second", fits_b)):
        best = min(fits.values(), key=lambda each: each.misfit)
        fits_well = "is" if known(fits) else "is none of those known; nearest to"
        words.append(f"the {who} {fits_well} {best.recipe.family} ({number(best.misfit)} rounding errors left)")
    both = not known(fits_a) and not known(fits_b)
    yield Cause("optimizer-other", f"The optimizers differ: {'; '.join(words)}.", (), 0.4 if both else 0.75)


def _without_frozen(a: Samples, b: Samples) -> tuple[Samples, Samples, tuple[Cause, tuple[str, ...]] | None]:
    """Leave out keys that one or both never update, and name those that one alone updates."""
    live_a, live_b = (side.sums(np.abs(side.updates).sum(axis=0)) > 0 for side in (a, b))
    alone = (live_a != live_b) & a.counted & b.counted
    keep = live_a & live_b
    cause = None
    if alone.any():
        names = tuple(name for name, lone in zip(a.names, alone, strict=True) if lone)
        who = "first" if live_b[alone][0] else "second"
        sentence = (
            f"{inert(names[0])} is never updated in the {who}, though it is in the other ({len(names)} such keys)."
        )
        cause = (
            Cause("frozen-parameter", sentence, tuple(f"{inert(name)}: updates are zero" for name in names[:5]), 0.95),
            names,
        )
    return a.chosen(keep), b.chosen(keep), cause


def _reset(case: Case, a: Samples, b: Samples, fits_a: Fits, fits_b: Fits) -> Iterator[Cause]:
    """Ask whether one side is the other's optimizer that begins anew at some update."""
    for who, samples, fits, others in (("second", b, fits_b, fits_a), ("first", a, fits_a, fits_b)):
        if known(fits) or not known(others):
            continue
        best = min(others.values(), key=lambda each: each.misfit)
        for update in sorted(range(2, len(samples.gradients)), key=lambda each: abs(each - case.update)):
            head, tail = samples.between(0, update - 1), samples.between(update - 1)
            misfits = [evaluate(part, best.recipe, best.numbers, best.coupled).misfit for part in (head, tail)]
            if max(misfits) < 3 * max(best.misfit, 1.0):
                sentence = f"The {who}'s optimizer state is lost at update {update}: from there on it is as if fresh."
                yield Cause("state-reset", sentence, (f"left over {number(max(misfits))} rounding errors",), 0.95)
                return
