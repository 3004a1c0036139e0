"""Keep what is found wrong with a run's files: at most so many sentences, each short and inert."""

from __future__ import annotations

from collections.abc import Iterable

from noether_core.text import message

MOST = 1000  # sentences
_MOST_CHARACTERS = 1000  # of one


class Problems(list[str]):
    """Be a list of sentences; the last one of a full list counts the rest.

    >>> problems = Problems(); problems.extend(f"line {number} is torn" for number in range(5000))
    >>> len(problems), problems[0], problems[-1]
    (1000, 'line 0 is torn', '4,001 more problems are not told here')
    """

    _left_out = 0

    def append(self, sentence: str) -> None:
        """Add a sentence."""
        if len(self) < MOST:
            super().append(message(sentence, _MOST_CHARACTERS))
            return
        self._left_out += 1 + (self._left_out == 0)
        self[-1] = f"{self._left_out:,} more problems are not told here"

    def extend(self, sentences: Iterable[str]) -> None:
        """Add sentences."""
        for sentence in sentences:
            self.append(sentence)
