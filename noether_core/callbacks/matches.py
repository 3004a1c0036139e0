"""Note which of a config's keys and patterns the update outputs have, and say which they lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.select import Selection, missing_key_message, require


class Matched(NamedTuple):
    """Hold what an interval's update outputs matched so far.

    Attributes:
        steps: how many steps had update outputs.
        patterns: those that some key contained.
    """

    steps: int = 0
    patterns: frozenset[str] = frozenset()


class Matches:
    """Keep what matched, and speak of what did not.

    Args:
        config: says which keys and patterns, and what an absent key does.
        warn_once: takes a subject and a message; of each subject it says one.

    Attributes:
        is_checked: whether the first update that had outputs has ended.
    """

    def __init__(self, config: TrackAdditionalOutputsCallbackConfig, warn_once: Callable[[str, str], None]) -> None:
        self._missing = config.missing
        self._patterns = config.patterns or []
        self._warn_once = warn_once
        self.is_checked = False
        self.so_far = Matched()

    def add(self, selection: Selection) -> None:
        """Note a step."""
        steps, patterns = self.so_far
        self.so_far = Matched(steps + 1, patterns if selection.matched <= patterns else patterns | selection.matched)

    def miss(self, selection: Selection, outputs: Mapping[str, Any]) -> None:
        """Do what the config says of the exact keys that are absent.

        Raises:
            MissingKeyError: if that is `error`.
        """
        if self._missing == "error":
            require(selection, tuple(outputs))
        for key in selection.missing if self._missing == "warn" else ():
            self._warn_once(key, missing_key_message([key], tuple(outputs)))

    def end_update(self) -> None:
        """Warn of patterns that matched nothing in the first update that had outputs; not where absence is to be skipped."""
        if not self.is_checked and self.so_far.steps:
            self.is_checked = True
            if self._missing != "skip":
                self.warn_of(self.unmatched(), "in the first update")

    def unmatched(self) -> list[str]:
        """Return the patterns that matched nothing; none, if there was nothing to match."""
        return [pattern for pattern in self._patterns if self.so_far.steps and pattern not in self.so_far.patterns]

    def warn_of(self, patterns: Sequence[str], when: str) -> None:
        """Warn once of each of these patterns."""
        for pattern in patterns:
            self._warn_once(pattern, f"pattern {pattern!r} matched no update output {when}; correct or drop it")
