"""Say when: the iteration reached so far, the counter that moves it, and the interval that fires on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import total_ordering
from itertools import count
from typing import Any, Literal, Protocol

from noether_core.errors import ScheduleError

Unit = Literal["epoch", "update", "sample"]
UNITS: tuple[Unit, ...] = ("epoch", "update", "sample")
RESERVED = frozenset({*UNITS, "crc32"})  # names that an entry of the log has beside those of its values


@total_ordering
@dataclass(frozen=True)
class TrainingIteration:
    """Count completed epochs, updates and samples; a field that is None is not specified.

    Raises:
        ScheduleError: for a field that is neither None nor an int of at least 0 (a difference may be negative).

    >>> str(TrainingIteration(epoch=1, update=20, sample=640))
    'E1_U20_S640'
    """

    epoch: int | None = None
    update: int | None = None
    sample: int | None = None

    def __post_init__(self) -> None:
        for unit in UNITS:
            value = getattr(self, unit)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise ScheduleError(f"TrainingIteration got {unit}={value!r}; expected an int or None")

    @classmethod
    def from_string(cls, text: str) -> TrainingIteration:
        """Parse `E1_U20_S640`, or any of its parts such as `U20`.

        >>> TrainingIteration.from_string("E1_U20")
        TrainingIteration(epoch=1, update=20, sample=None)
        """
        match = re.fullmatch(r"(?:E(\d+))?(?:(?:^|_)U(\d+))?(?:(?:^|_)S(\d+))?", text, re.ASCII)
        if not text or match is None:
            raise ScheduleError(
                f"cannot read {text!r} as an iteration; expected a form like 'E1_U20_S640', 'U20' or 'E1'"
            )
        epoch, update, sample = (None if part is None else int(part) for part in match.groups())
        return cls(epoch, update, sample)

    def __str__(self) -> str:
        return "_".join(f"{unit[0].upper()}{value}" for unit, value in self._specified().items())

    def _specified(self) -> dict[Unit, int]:
        return {unit: value for unit in UNITS if (value := getattr(self, unit)) is not None}

    @property
    def is_fully_specified(self) -> bool:
        """Tell whether epoch, update and sample are all given."""
        return len(self._specified()) == 3

    @property
    def is_minimally_specified(self) -> bool:
        """Tell whether exactly one of epoch, update and sample is given."""
        return len(self._specified()) == 1

    def copy(self) -> TrainingIteration:
        """Return an equal iteration."""
        return replace(self)

    def to_fully_specified(self, updates_per_epoch: int | None, effective_batch_size: int) -> TrainingIteration:
        """Fill in the fields that follow from the given ones.

        Updates are the common measure: an epoch has `updates_per_epoch` of them (None: there are no epochs, and the
        epoch is 0), an update has `effective_batch_size` samples. A number of samples between two updates counts as
        the update that reaches it; an update within an epoch counts the epochs completed.

        >>> TrainingIteration(update=25).to_fully_specified(updates_per_epoch=10, effective_batch_size=4)
        TrainingIteration(epoch=2, update=25, sample=100)
        """
        if not self._specified():
            raise ScheduleError("an iteration without epoch, update or sample cannot be completed; give one of them")
        update = self.update
        if update is None and self.sample is not None:
            update = -(-self.sample // effective_batch_size)
        if update is None:
            assert self.epoch is not None
            if updates_per_epoch is None and self.epoch:
                raise ScheduleError(
                    f"{self} counts epochs, but updates_per_epoch is None; give it, or count in updates"
                )
            update = self.epoch * (updates_per_epoch or 0)
        epoch = self.epoch if self.epoch is not None else update // updates_per_epoch if updates_per_epoch else 0
        sample = self.sample if self.sample is not None else update * effective_batch_size
        return TrainingIteration(epoch, update, sample)

    def _paired(self, other: TrainingIteration, operation: str) -> dict[Unit, tuple[int, int]]:
        mine, others = self._specified(), other._specified()
        if mine.keys() != others.keys() or not mine:
            raise ScheduleError(
                f"cannot {operation} {str(self) or 'an empty iteration'!r} and {str(other) or 'an empty iteration'!r}: "
                "both must specify the same fields; complete them with to_fully_specified first"
            )
        return {unit: (mine[unit], others[unit]) for unit in mine}

    def __lt__(self, other: TrainingIteration) -> bool:
        signs = {(a > b) - (a < b) for a, b in self._paired(other, "order").values()} - {0}
        if len(signs) > 1:
            raise ScheduleError(f"cannot order {self} and {other}: one field is ahead, another behind")
        return signs == {-1}

    def __add__(self, other: TrainingIteration) -> TrainingIteration:
        return TrainingIteration(**{unit: a + b for unit, (a, b) in self._paired(other, "add").items()})

    def __sub__(self, other: TrainingIteration) -> TrainingIteration:
        return TrainingIteration(**{unit: a - b for unit, (a, b) in self._paired(other, "subtract").items()})


def iteration_of(given: Mapping[str, int] | TrainingIteration | None, name: str) -> TrainingIteration | None:
    """Return the iteration that a run's argument `name` says, such as `{"update": 100}`; None if it says none."""
    if given is None or isinstance(given, TrainingIteration):
        return given
    if not isinstance(given, Mapping) or len(given) != 1 or not set(given) <= set(UNITS):
        raise ScheduleError(
            f"Run got {name}={given!r}; expected one of {{'epoch': n}}, {{'update': n}}, {{'sample': n}}, or None"
        )
    return TrainingIteration(**given)


class Counter(Protocol):
    """List what the callbacks read of a counter; a counter of the user's own works if it has these."""

    @property
    def epoch(self) -> int:
        """Return the epochs completed."""

    @property
    def update(self) -> int:
        """Return the updates completed."""

    @property
    def sample(self) -> int:
        """Return the samples completed."""

    @property
    def cur_iteration(self) -> TrainingIteration:
        """Return the epochs, updates and samples completed."""


def require_positive(owner: str, **given: Any) -> None:
    """Raise `ScheduleError` if one of the arguments that `owner` got is no int of at least 1."""
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ScheduleError(f"{owner} got {name}={value!r}; expected an int of at least 1")


class UpdateCounter:
    """Count epochs, updates and samples from a start to an end.

    Args:
        start_iteration: where training starts; None is the beginning.
        end_iteration: where it ends; None is never.
        updates_per_epoch: the updates of an epoch; None where there are no epochs.
        effective_batch_size: the samples of an update, over all devices and accumulation steps.

    Attributes:
        epoch, update, sample: how many are completed.

    >>> counter = UpdateCounter(None, TrainingIteration(epoch=2), updates_per_epoch=10, effective_batch_size=4)
    >>> counter.add_samples(4); counter.next_update(); str(counter.cur_iteration)
    'E0_U1_S4'
    """

    def __init__(
        self,
        start_iteration: TrainingIteration | None = None,
        end_iteration: TrainingIteration | None = None,
        updates_per_epoch: int | None = None,
        effective_batch_size: int = 1,
    ) -> None:
        if updates_per_epoch is not None:
            require_positive("UpdateCounter", updates_per_epoch=updates_per_epoch)
        require_positive("UpdateCounter", effective_batch_size=effective_batch_size)
        self.updates_per_epoch = updates_per_epoch
        self.effective_batch_size = effective_batch_size
        start = start_iteration if start_iteration is not None else TrainingIteration(update=0)
        start = start.to_fully_specified(updates_per_epoch, effective_batch_size)
        self.epoch, self.update, self.sample = start.epoch or 0, start.update or 0, start.sample or 0
        self.end_iteration = (
            None if end_iteration is None else end_iteration.to_fully_specified(updates_per_epoch, effective_batch_size)
        )

    @property
    def cur_iteration(self) -> TrainingIteration:
        """Return the epochs, updates and samples completed."""
        return TrainingIteration(self.epoch, self.update, self.sample)

    @property
    def epoch_as_float(self) -> float:
        """Return the epochs completed with the fraction of the one under way."""
        if self.updates_per_epoch is None:
            raise ScheduleError("epoch_as_float needs updates_per_epoch; this counter has none")
        return self.update / self.updates_per_epoch

    @property
    def is_full_epoch(self) -> bool:
        """Tell whether the updates completed make whole epochs."""
        return self.updates_per_epoch is not None and self.update % self.updates_per_epoch == 0

    @property
    def is_finished(self) -> bool:
        """Tell whether the end is reached."""
        end = self.end_iteration
        return end is not None and self.update >= (end.update or 0)

    def next_update(self) -> None:
        """Count one update."""
        self.update += 1

    def next_epoch(self) -> None:
        """Count one epoch."""
        self.epoch += 1

    def add_samples(self, num_samples: int) -> None:
        """Count `num_samples` samples."""
        self.sample += num_samples


@dataclass(frozen=True)
class Interval:
    """Fire every `n` epochs, updates or samples.

    >>> str(Interval("update", 10)), Interval("update", 10).verbose
    ('U10', 'every_n_updates=10')
    """

    unit: Unit
    n: int

    def __str__(self) -> str:
        return f"{self.unit[0].upper()}{self.n}"

    @property
    def verbose(self) -> str:
        """Return the interval as the config writes it."""
        return f"every_n_{self.unit}s={self.n}"

    def ends_between(self, before: int, now: int) -> bool:
        """Tell whether a multiple of `n` lies in (before, now].

        >>> [now for now in range(8, 88, 8) if Interval("sample", 20).ends_between(now - 8, now)]
        [24, 40, 64, 80]
        """
        return now // self.n > before // self.n

    def last_end(self, at: TrainingIteration, updates_per_epoch: int | None, effective_batch_size: int) -> int:
        """Return the update at which the interval ended last, up to `at` (fully specified).

        >>> Interval("sample", 20).last_end(TrainingIteration(0, 4, 32), None, effective_batch_size=8)
        3
        """
        update, rest = at.update or 0, (getattr(at, self.unit) or 0) % self.n
        if self.unit == "update":
            return update - rest
        if self.unit == "sample":
            return max(0, update - rest // effective_batch_size)
        return 0 if updates_per_epoch is None else (update // updates_per_epoch - rest) * updates_per_epoch

    def ends(self, start: TrainingIteration, updates_per_epoch: int | None, effective_batch_size: int) -> Iterator[int]:
        """Yield the updates at which the interval ends, from after `start` (fully specified) on.

        >>> ends = Interval("sample", 20).ends(TrainingIteration(0, 1, 8), None, effective_batch_size=8)
        >>> [next(ends) for _ in range(4)]
        [3, 5, 8, 10]
        """
        epoch, update, sample = start.epoch or 0, start.update or 0, start.sample or 0
        for number in count(getattr(start, self.unit) // self.n + 1):
            target = number * self.n
            if self.unit == "update":
                yield target
            elif self.unit == "sample":
                end = update + -((sample - target) // effective_batch_size)
                if end > update:
                    yield end
                    update, sample = end, sample + (end - update) * effective_batch_size
            elif updates_per_epoch is not None:
                yield (update // updates_per_epoch + target - epoch) * updates_per_epoch
