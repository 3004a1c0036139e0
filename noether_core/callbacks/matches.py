"""Note which of a config's keys and patterns the update outputs have, and say which they lack."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from logging import Logger
from typing import Any, NamedTuple

from noether_core.config.log_names import LogNames
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.scalars import shape_of
from noether_core.select import Selection, missing_key_message, require
from noether_core.text import message

_MOST = 20  # outputs that a line names


class Matched(NamedTuple):
    """Hold what an interval's update outputs matched so far.

    Attributes:
        steps: how many steps had update outputs.
        patterns: those that some key contained.
    """

    steps: int = 0
    patterns: frozenset[str] = frozenset()


def _what(value: Any, shape: tuple[int, ...] | None) -> str:
    return type(value).__name__ if shape is None else f"of shape {shape}"


class Matches:
    """Keep what matched, and speak of what did not.

    Args:
        config: says which keys and patterns, and what an absent key does.
        warn_once: takes a subject and a message; of each subject it says one.
        logger: is told, once, what is left alone where every single number is tracked.
        title: what messages call the callback.
        tells: says whether it is this process that tells what is left alone.

    Attributes:
        names: of all that a run's callbacks log; None outside of a run.
        is_checked: whether the first update that had outputs has ended.
    """

    def __init__(
        self,
        config: TrackAdditionalOutputsCallbackConfig,
        warn_once: Callable[[str, str], None],
        logger: Logger,
        title: str,
        tells: Callable[[], bool],
    ) -> None:
        self._config, self._logger, self._title, self._tells = config, logger, title, tells
        self.names: LogNames | None = None
        self._left: frozenset[str] = frozenset()
        self._has_tracked = False
        self._missing = config.missing
        self._patterns = config.patterns or []
        self._warn_once = warn_once
        self.is_checked = False
        self.so_far = Matched()

    def add(self, selection: Selection) -> None:
        """Note a step."""
        self._has_tracked = self._has_tracked or bool(selection.tracked)
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

    def look(self, selection: Selection, outputs: Mapping[str, Any]) -> None:
        """Refuse what is missing or would be logged under a name that is taken, and say what is left alone.

        Raises:
            MissingKeyError: if an exact key is absent, and that is an error.
            DuplicateKeyError: if another callback logs under one of the names.
        """
        if selection.missing:
            self.miss(selection, outputs)
        if self.names is not None:
            self.names.claim(self, self._config, selection.tracked, self._title)
        if selection.left and not self._left.issuperset(selection.left) and self._tells():
            self._leave([key for key in selection.left if key not in self._left], outputs)

    def _leave(self, new: Sequence[str], outputs: Mapping[str, Any]) -> None:
        """Say of outputs, once, that they are left alone, for they are no single numbers and not named."""
        self._left = self._left.union(new)
        shapes = {key: shape_of(outputs[key]) for key in new}
        told = [f"{key!r:.200} ({_what(outputs[key], shapes[key])})" for key in new[:_MOST]]
        told += [f"{len(new) - _MOST} more"] * (len(new) > _MOST)
        text = f"no single numbers, so not tracked: {', '.join(told)}"
        lengths = {shape[:1] for shape in shapes.values() if shape is not None}
        if len(lengths) == 1 and (length := max(lengths)):
            text += f"; if their first axis is one of steps, as of jax.lax.scan: run.step(outputs, steps={length[0]})"
        array = next((key for key in new if shapes[key] is not None), None)
        if array is not None:
            interval = self._config.interval.verbose.replace("=", ": ")
            text += f"; to track all elements of an array, name it: {{scalars: true, keys: [{array!r}], {interval}}}"
        self._logger.warning("%s", message(text))

    def end_update(self) -> None:
        """Warn of patterns that matched nothing in the first update that had outputs; not where absence is to be skipped."""
        if not self.is_checked and self.so_far.steps:
            self.is_checked = True
            if self._missing != "skip":
                self.warn_of(self.unmatched(), "in the first update")
                if self._config.scalars and not self._has_tracked:
                    self._warn_once(
                        "", "no update output of the first update is a single number, so there is nothing to log"
                    )

    def unmatched(self) -> list[str]:
        """Return the patterns that matched nothing; none, if there was nothing to match."""
        return [pattern for pattern in self._patterns if self.so_far.steps and pattern not in self.so_far.patterns]

    def warn_of(self, patterns: Sequence[str], when: str) -> None:
        """Warn once of each of these patterns."""
        for pattern in patterns:
            self._warn_once(pattern, f"pattern {pattern!r} matched no update output {when}; correct or drop it")
