"""Answer where two runs first part, how sure that is, and what is likely to be why: no more than what could be read allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from noether_core.errors import listing
from noether_core.parity.between_runs.aligned import Mapped
from noether_core.parity.between_runs.ends import early_end
from noether_core.parity.between_runs.pair import Given, Pair, opened_pair
from noether_core.parity.between_runs.readable import damaged, notes_of
from noether_core.parity.between_runs.views import Through
from noether_core.parity.divergence import STAGES, Comparison, Training, compare, stage_of
from noether_core.parity.divergence.causes import upstream, with_causes
from noether_core.text import inert

Progress = Callable[[int, int], None]


def compare_trainings(
    a: Given,
    b: Given,
    *,
    twins: Sequence[Given] = (),
    mapping: Mapped = None,
    through: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Say where two trainings first part, how sure that is, and what is likely to be why.

    Args:
        a: a run directory with probes, or what `read_training` made of it.
        b: the other one.
        twins: of either training, besides those in `RUN/twins`, where `noether-parity calibrate` puts them.
        mapping: a YAML file, or what it would hold: for each of `a`'s parameters what `b` calls it. Needed only for names that
            cannot be paired by themselves.
        through: the last update that is compared. Without it, one that ends before the other cannot be called the same.
        progress: called with how many updates are done, and of how many.

    Raises:
        RunFormatError: for a path that is no run directory.
        TwinError: if one of `twins` is a twin of neither.
        ConfigFileError: for a mapping that cannot be read.
    """
    pair = opened_pair(a, b, twins, mapping)
    if isinstance(pair, Comparison):
        return pair
    if through is not None:
        pair = replace(pair, a=Through(pair.a, through), b=Through(pair.b, through))
    return compare_pair(pair, progress)


def compare_pair(pair: Pair, progress: Progress | None = None) -> Comparison:
    """Compare a pair; see `compare_trainings`."""
    found = compare(pair.a, pair.b, pair.noise, progress)
    found = replace(found, stages=_stages_of(pair.a, pair.b))
    if found.outcome == "same":
        found = _as_far_as_both(pair, _as_far_as_whole(pair, found))
    elif found.outcome == "differs":
        found = _with_causes(pair, found)
    return replace(found, warnings=(*notes_of(*pair.read), *pair.warnings, *found.warnings))


def _with_causes(pair: Pair, found: Comparison) -> Comparison:
    """Return what was found with its causes; from the activation on that was computed first, where that had to be found."""
    first = None if found.first is None else upstream(pair.a, pair.b, pair.noise, found.first)
    if first is None:
        return with_causes(pair.a, pair.b, pair.noise, found)
    if found.first is not None and first.key != found.first.key:
        found = replace(compare(first.a, first.b, pair.noise), stages=found.stages)
    if first.note:
        found = replace(found, warnings=(*found.warnings, first.note))
    return with_causes(first.a, first.b, pair.noise, found)


def _as_far_as_whole(pair: Pair, found: Comparison) -> Comparison:
    """Return what was found the same, unless something is left that could differ: what is damaged, or has no partner."""
    if gone := damaged(*pair.read[:2]):
        label, first = gone[0]
        more = f" and {len(gone) - 1:,} more" if len(gone) > 1 else ""
        sentence = (
            f"Cannot say: what can be read is the same through update {found.same_through}, but {label} lacks {first.words}"
            f"{more}: {first.problem}."
        )
        return replace(found, outcome="cannot say", sentence=inert(sentence))
    if not any(pair.unmapped):
        return found
    left_a, left_b = pair.unmapped
    return replace(
        found,
        outcome="cannot say",
        sentence=f"Cannot say: what has the same name is the same through update {found.same_through}, but"
        f" {len(left_a)} parameters of {found.labels[0]} ({listing(left_a, 3)}) and {len(left_b)} of {found.labels[1]}"
        f" ({listing(left_b, 3)}) have no partner. Map them: --mapping FILE, `mapping=`.",
    )


def _as_far_as_both(pair: Pair, found: Comparison) -> Comparison:
    """Return what was found the same, unless one ends before the other does, and may have gone on otherwise, or crashed."""
    ended = early_end(pair.a, pair.b) if found.outcome == "same" else ""
    if not ended:
        return found
    last = found.same_through
    said = found.sentence.removeprefix(f"Same through update {last}: ")
    sentence = f"Same through update {last}, where {inert(ended)}, so the rest cannot be said: {said}"
    return replace(
        found, outcome="cannot say", sentence=f"{sentence} If it is to end there: --through {last}, `through={last}`."
    )


def _stages_of(a: Training, b: Training) -> tuple[str, ...]:
    """Return the stages of which both have a key, in the first and the last update that both have."""
    both = sorted(set(a.updates()) & set(b.updates()))
    common = {key for update in {*both[:1], *both[-1:]} for key in {*a.keys(update)} & {*b.keys(update)}}
    return tuple(stage for stage in STAGES if any(stage_of(key) == stage for key in common))
