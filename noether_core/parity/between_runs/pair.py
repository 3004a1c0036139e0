"""Bring two trainings and their twins under one set of names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from noether_core.errors import listing
from noether_core.names import Matching
from noether_core.parity.between_runs.aligned import Aligned, Mapped, matching_of
from noether_core.parity.between_runs.calibrate import find_twins
from noether_core.parity.between_runs.drift import has_other_rows, problem_of_twin, usable_part
from noether_core.parity.between_runs.readable import notes_of, readable, without_probes
from noether_core.parity.divergence import Comparison, Noise, Training
from noether_core.probes import read_training
from noether_core.twin import TwinError

Given = str | Path | Training
_SETTINGS = ("accumulation_steps", "effective_batch_size", "updates_per_epoch")


@dataclass(frozen=True)
class Pair:
    """Hold two trainings under one set of names, and the noise of their twins.

    Attributes:
        a, b: the trainings; `b` under `a`'s names.
        noise: of the twins of both.
        warnings: sentences on names, twins and settings.
        unmapped: names of `a`, then of `b`, that the other has no partner for.
        read: the trainings under their own names, as they are read, and after these two their twins.
    """

    a: Training
    b: Training
    noise: Noise
    warnings: tuple[str, ...]
    unmapped: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    read: tuple[Training, ...] = ()


def opened_pair(a: Given, b: Given, twins: Sequence[Given] = (), mapping: Mapped = None) -> Pair | Comparison:
    """Return two trainings and their twins as a pair, or the answer where nothing was probed; see `compare_trainings`."""
    first, second = _opened(a), _opened(b)
    if problem := without_probes(first, second):
        return Comparison("cannot say", problem, (first.label, second.label), warnings=tuple(notes_of(first, second)))
    return paired(first, second, _twins_of(a, first), _twins_of(b, second), twins, mapping)


def paired(
    a: Training,
    b: Training,
    twins_a: Sequence[Training] = (),
    twins_b: Sequence[Training] = (),
    twins: Sequence[Given] = (),
    mapping: Mapped = None,
) -> Pair:
    """Bring two trainings and their twins under one set of names.

    Args:
        a: a training.
        b: the other one.
        twins_a: twins of `a`.
        twins_b: twins of `b`.
        twins: more, of either.
        mapping: see `compare_trainings`.
    """
    a, b = readable(a), readable(b)
    of_a, of_b = list(map(readable, twins_a)), list(map(readable, twins_b))
    read = [a, b, *of_a, *of_b]
    for each in map(_opened, twins):
        (of_a if _belongs_to(each, a, b) == 0 else of_b).append(_usable(each, a, b))
        read.append(each)
    matching = matching_of(a, b, mapping)
    aligned = [b, *of_b] if matching is None else [Aligned(each, matching) for each in (b, *of_b)]
    noise = Noise.of_twins(a, of_a) | Noise.of_twins(aligned[0], aligned[1:])
    warnings = [*_settings(a, b), *_one_sided(a, b, of_a, of_b)]
    unmapped = ((), ()) if matching is None else _left(matching)
    if any(unmapped) and matching is not None:
        warnings.append(f"a mapping file for what has no partner, to be completed:\n{matching.mapping_to_complete()}")
    warnings += [] if matching is None else _mapped_twice(matching)
    return Pair(a, aligned[0], noise, tuple(warnings), unmapped, tuple(read))


def _opened(given: Given) -> Training:
    return readable(read_training(Path(given)) if isinstance(given, str | Path) else given)


def _twins_of(given: Given, training: Training) -> list[Training]:
    """Return the twins beside a run; those of another training, such as of an older one in that place, are refused."""
    if not isinstance(given, str | Path):
        return []
    found = []
    for twin in find_twins(given):
        read = _opened(twin.path)
        if problem := problem_of_twin(training, read, rows=twin.rows):
            raise TwinError(
                f"{str(twin.path)!r} is no twin of {str(given)!r}: {problem}. If the run was made anew, make its twins anew:"
                f" `noether-parity calibrate {given} --again -- COMMAND`"
            )
        found.append(usable_part(read, rows=twin.rows))
    return found


def _belongs_to(twin: Training, a: Training, b: Training) -> int:
    problems = [problem_of_twin(run, twin, rows=has_other_rows(run, twin)) for run in (a, b)]
    fitting = [place for place, problem in enumerate(problems) if not problem]
    if not fitting:
        raise TwinError(
            f"{twin.label!r} is a twin of neither training. Of {a.label!r}: {problems[0]}. Of {b.label!r}: {problems[1]}"
        )
    same_framework = [place for place in fitting if (a, b)[place].framework == twin.framework]
    return (same_framework or fitting)[0]


def _usable(twin: Training, a: Training, b: Training) -> Training:
    return usable_part(twin, rows=has_other_rows(a, twin) or has_other_rows(b, twin))


def _left(matching: Matching) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(matching.unmatched_torch), tuple(matching.unmatched_flax)


def _mapped_twice(matching: Matching) -> list[str]:
    """Return a note on names that the mapping file pairs with one array: tied weights, or a slip."""
    names: dict[tuple[str, ...], list[str]] = {}
    for entry in matching.entries:
        if entry.how == "mapping":
            names.setdefault(entry.paths, []).append(entry.name)
    twice = [(paths, found) for paths, found in names.items() if len(found) > 1]
    return [f"the mapping pairs each of {listing(found, 3)} with {listing(paths, 3)}" for paths, found in twice]


def _settings(a: Training, b: Training) -> list[str]:
    apart = [
        f"{name} is {a.settings[name]!r} in {a.label} and {b.settings[name]!r} in {b.label}"
        for name in _SETTINGS
        if name in a.settings and name in b.settings and a.settings[name] != b.settings[name]
    ]
    return [f"other settings: {'; '.join(apart)}"] if apart else []


def _one_sided(a: Training, b: Training, of_a: Sequence[Training], of_b: Sequence[Training]) -> list[str]:
    if bool(of_a) == bool(of_b) or a.framework == b.framework:
        return []
    without, other = (a, b) if of_b else (b, a)
    return [
        f"only {other.label} has twins; what {without.label} drifts may be more: `noether-parity calibrate` makes its twins"
    ]
