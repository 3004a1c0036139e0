"""Read of a training what is whole, and keep what is damaged or gone, so that a comparison can say it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from noether_core.emit.writer_lock import is_written_now
from noether_core.errors import RunFormatError
from noether_core.parity.divergence.training import Training
from noether_core.parity.divergence.view import TrainingView
from noether_core.probes import RecordedTraining
from noether_core.probes.damage import Damage
from noether_core.text import inert

MOST = 5  # damaged files that are told one by one


class Readable(TrainingView):
    """Show a training on disk, but for its damaged arrays, which are there for nobody and are kept as damage.

    Args:
        training: what `read_training` made.
    """

    training: RecordedTraining

    def __init__(self, training: RecordedTraining) -> None:
        super().__init__(training)
        self._found: dict[tuple[int, str], Damage] = {}

    def array(self, update: int, key: str) -> np.ndarray[Any, Any] | None:
        """Return an array, or None if it was not kept or is damaged."""
        try:
            return self.training.array(update, key)
        except (RunFormatError, OSError) as error:
            self._found[update, key] = Damage(str(error), f"array {key}", update, update)
            return None

    # ------------------------------------------------------------------ what a person should know of it

    @property
    def damage(self) -> list[Damage]:
        """What of its probes is damaged or gone, as far as it was asked for."""
        return [*self.training.damaged, *(self._found[place] for place in sorted(self._found))]

    @property
    def is_written_now(self) -> bool:
        """Whether a process of this machine writes to it."""
        return is_written_now(self.training.path)

    @property
    def is_to_probe(self) -> bool:
        """Whether its config has a `ProbeCallback`."""
        callbacks = self.settings.get("callbacks")
        kinds = [each.get("kind") for each in callbacks or () if isinstance(each, Mapping)]
        return any(str(kind).rpartition(".")[2] == "ProbeCallback" for kind in kinds)

    def notes(self) -> Iterator[str]:
        """Yield sentences on what is damaged, and on whether it is still being written."""
        if self.is_written_now:
            yield f"{self.label} is still being written: it was compared as far as it is saved"
        damage, beside = self.damage, self.training.beside
        yield from (f"{self.label} lacks {each.words}: {each.problem}" for each in damage[:MOST])
        if len(damage) > MOST:
            yield (
                f"{len(damage) - MOST:,} more files or arrays of {self.label}'s probes are damaged or missing:"
                f" `noether-parity check {self.training.path}` names them"
            )
        if beside:
            more = f" and {len(beside) - 1:,} more: `noether-parity check` names them" if len(beside) > 1 else ""
            yield f"in {self.label} something beside the probes is damaged or unknown: {beside[0]}{more}"


def readable(training: Training) -> Training:
    """Return a training, one on disk without what is damaged of it."""
    return Readable(training) if isinstance(training, RecordedTraining) else training


def notes_of(*trainings: Training) -> list[str]:
    """Return the notes of those that are on disk."""
    return [inert(note) for each in _on_disk(trainings) for note in each.notes()]


def damaged(*trainings: Training) -> list[tuple[str, Damage]]:
    """Return what is damaged of those that are on disk, each with its label."""
    return [(each.label, found) for each in _on_disk(trainings) for found in each.damage]


def _on_disk(trainings: Sequence[Training]) -> Iterator[Readable]:
    """Yield those that are on disk, also of those that are seen by a view."""
    for each in trainings:
        while isinstance(each, TrainingView) and not isinstance(each, Readable):
            each = each.training
        if isinstance(each, Readable):
            yield each


def without_probes(a: Training, b: Training) -> str:
    """Return a sentence if one of two has nothing that can be compared; empty if both have."""
    empty = [each for each in (a, b) if not each.updates()]
    if not empty:
        return ""
    reasons: dict[str, list[str]] = {}
    for each in empty:
        reasons.setdefault(_why_empty(each), []).append(each.label)
    sentences = [
        f"{' and '.join(labels)} {'has' if len(labels) == 1 else 'have'} no probed updates{why}"
        for why, labels in reasons.items()
    ]
    return inert(f"Cannot say: {' '.join(sentences)}")


def _why_empty(training: Training) -> str:
    if isinstance(training, Readable):
        if found := training.damage:
            return f" that can be read: {found[0]}."
        if training.is_written_now:
            return " yet, and is still being written. Compare again when it has saved some."
        if training.is_to_probe:
            return (
                ", though it has a ProbeCallback: nothing of them was saved. Did it end before its first update, or before the"
                " first that is due (`every_n_updates`, `arrays`)? Or was nothing given to `run.probe` or `probe`?"
            )
    return ". Track `probe(batch=…, params=…, grads=…, …)` in the training and run it again; docs/compare.md shows how."
