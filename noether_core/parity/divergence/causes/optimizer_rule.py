"""Identify both trainings' optimizers by themselves, and find the fewest changes that lead from one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from noether_core.parity.divergence.causes.optimizer_fit import Fit, evaluate, fit, refine
from noether_core.parity.divergence.causes.optimizer_recipes import FLAGS, Recipe, numbers_of
from noether_core.parity.divergence.causes.optimizer_samples import Samples

Fits = dict[Recipe, Fit]

_KNOWN = 25.0  # rounding errors: what is left of an optimizer that was recognised
_SIMILAR = 4.0  # a family whose misfit is so many times the best one's is looked at more closely


@dataclass(frozen=True)
class Edit:
    """Say what leads from one optimizer to the other.

    Attributes:
        a, b: the fits, with the numbers that they share made equal.
        flags: the flags that one of them has alone.
        numbers: the numbers that differ.
        quality: 1 where nothing but rounding is left, less where more is.
    """

    a: Fit
    b: Fit
    flags: tuple[str, ...]
    numbers: tuple[str, ...]
    quality: float

    @property
    def changes(self) -> int:
        """How many things differ, rates and decay aside; another family counts thrice."""
        return len(self.flags) + len(self.numbers) + 3 * (self.a.recipe.family != self.b.recipe.family)


def known(fits: Fits) -> bool:
    """Tell whether one of the recipes is what the training did."""
    return bool(fits) and min(each.misfit for each in fits.values()) < _KNOWN


def identify(a: Samples, b: Samples) -> tuple[Fits, Fits]:
    """Fit each side with every recipe that is close for one of them."""
    fits_a = _searched(a, {})
    fits_b = _searched(b, fits_a)
    if known(fits_b) and not known(fits_a):
        fits_a |= _searched(a, fits_b)
    wanted = {recipe for fits in (fits_a, fits_b) for recipe in acceptable(fits)}
    for samples, fits, others in ((a, fits_a, fits_b), (b, fits_b, fits_a)):
        for recipe in wanted - set(fits):
            fits[recipe] = fit(samples, recipe, others[recipe] if known(fits) else None)
    return fits_a, fits_b


def edits(a: Samples, b: Samples, fits_a: Fits, fits_b: Fits) -> list[Edit]:
    """Return the ways from one side's optimizer to the other's, those with the fewest changes first."""
    pairs = [(one, other) for one in acceptable(fits_a) for other in acceptable(fits_b)]
    pairs.sort(key=lambda pair: (_apart(*pair), fits_a[pair[0]].misfit + fits_b[pair[1]].misfit))
    if not pairs:
        return []
    least = _apart(*pairs[0])
    found = [_edit(a, b, fits_a, fits_b, one, other) for one, other in pairs[:8] if _apart(one, other) <= least + 1]
    return sorted(found, key=lambda edit: (edit.changes, -edit.quality))


def _searched(samples: Samples, hints: Fits) -> Fits:
    """Fit recipes: those a change away from what the other side is known to be, then family by family, the closest first."""
    found: Fits = {}
    if known(hints):
        hint = min(hints.values(), key=lambda each: each.misfit)
        near = evaluate(samples, hint.recipe, hint.numbers, hint.coupled)
        found[hint.recipe] = min(refine(samples, near, tuple(near.numbers)), fit(samples, hint.recipe), key=_misfit)
        _improve(samples, found, hint.recipe, hint)
        if min(map(_misfit, found.values())) < _SIMILAR * max(hint.misfit, 1.0):
            return found
    families = sorted((fit(samples, recipe) for recipe in map(Recipe, FLAGS) if recipe not in found), key=_misfit)
    found |= {each.recipe: each for each in families}
    for each in families:
        best = min(map(_misfit, found.values()))
        if each.misfit <= max(_SIMILAR * best, _KNOWN) or not known(found):
            _improve(samples, found, each.recipe)
    return found


def _misfit(each: Fit) -> float:
    return each.misfit


def _improve(samples: Samples, fits: Fits, recipe: Recipe, hint: Fit | None = None) -> None:
    """Toggle one flag after another, as long as that leaves less; `fits` keeps all that was tried."""
    for _ in range(3):
        options = [recipe.toggled(flag) for flag in FLAGS[recipe.family]]
        for option in options:
            if option not in fits:
                fits[option] = _fitted(samples, option, fits[recipe] if known({recipe: fits[recipe]}) else hint)
        best = min(options, key=lambda option: fits[option].misfit)
        if fits[best].misfit > 0.9 * fits[recipe].misfit:
            return
        recipe = best


def _fitted(samples: Samples, recipe: Recipe, start: Fit | None) -> Fit:
    """Fit a recipe from where a similar one was found, and from the grid if that leads nowhere."""
    found = fit(samples, recipe, start)
    if start is None or known({recipe: found}):
        return found
    return min(found, fit(samples, recipe), key=_misfit)


def _limit(fits: Fits) -> float:
    best = min(each.misfit for each in fits.values())
    return max(1.15 * best, min(best + 0.15, 1.3))


def acceptable(fits: Fits) -> list[Recipe]:
    """Return the recipes that leave little more than the best one, the plainest first."""
    limit = _limit(fits)
    return sorted(
        (recipe for recipe, each in fits.items() if each.misfit <= limit),
        key=lambda recipe: (len(recipe.flags), fits[recipe].misfit),
    )


def _apart(one: Recipe, other: Recipe) -> int:
    return len(one.flags ^ other.flags) + 3 * (one.family != other.family)


def _edit(a: Samples, b: Samples, fits_a: Fits, fits_b: Fits, one: Recipe, other: Recipe) -> Edit:
    """Compare two recipes' numbers: as few as possible may differ, since some are not to be seen in a training at all."""
    flags = tuple(sorted(one.flags ^ other.flags))
    fit_a, fit_b = fits_a[one], fits_b[other]
    shared = [name for name in numbers_of(one) if name in numbers_of(other)]
    for free in ([], *([name] for name in shared), shared):
        towards_b = _with(b, fit_a, fit_b, free, _limit(fits_b))
        if towards_b is not None:
            return Edit(fit_a, towards_b, flags, tuple(free), _quality(fits_a, fit_a) * _quality(fits_b, towards_b))
        towards_a = _with(a, fit_b, fit_a, free, _limit(fits_a))
        if towards_a is not None:
            return Edit(towards_a, fit_b, flags, tuple(free), _quality(fits_a, towards_a) * _quality(fits_b, fit_b))
    return Edit(fit_a, fit_b, flags, tuple(shared), _quality(fits_a, fit_a) * _quality(fits_b, fit_b))


def _with(samples: Samples, source: Fit, target: Fit, free: Sequence[str], limit: float) -> Fit | None:
    """Give one side the other's numbers, but for those in `free`; None if it cannot be so."""
    numbers = {
        name: target.numbers[name] if name in free else source.numbers.get(name, value)
        for name, value in target.numbers.items()
    }
    start = evaluate(samples, target.recipe, numbers, target.coupled)
    found = refine(samples, start, free) if free or "coupled" in target.recipe.flags else start
    return found if found.misfit <= limit else None


def _quality(fits: Fits, chosen: Fit) -> float:
    best = min(each.misfit for each in fits.values())
    return min(1.0, max(best, 0.5) / max(chosen.misfit, 1e-9))
