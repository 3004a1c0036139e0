"""Give what a run logs to the log of the trainer that drives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from noether_core.emit.trackers import Tracker
from noether_core.schedule import UNITS


class TrainerLog(Tracker):
    """Give the numbers of each entry to a function, with the update they belong to; the trainer closes what is behind it."""

    inline = True  # on the training thread, at the update's own step: a trainer's log is not made for another thread

    def __init__(self, log: Callable[[dict[str, Any], int], object], *, in_every_process: bool = False) -> None:
        self._log = log
        self.in_every_process = in_every_process  # for a trainer that keeps its log in each

    def log(self, entry: Mapping[str, Any]) -> None:
        """Give an entry's numbers."""
        numbers = {key: value for key, value in entry.items() if key not in UNITS and isinstance(value, int | float)}
        self._log(numbers, entry["update"])

    def close(self) -> None:
        """Do nothing."""
