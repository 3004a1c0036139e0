"""Say what a run is: in its `config.yaml`, and in the record of each of its starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import yaml

from noether_core.callbacks.base import CallbackBase
from noether_core.config.load import as_entry
from noether_core.schedule import UpdateCounter


class RunConfig(NamedTuple):
    """Hold what a run is made of.

    Attributes:
        counter: counts its epochs, updates and samples.
        accumulation_steps: of an update.
        callbacks: the callback objects.
        processes: how many there are.
    """

    counter: UpdateCounter
    accumulation_steps: int
    callbacks: Sequence[CallbackBase]
    processes: int

    def yaml(self) -> bytes:
        """Return what `config.yaml` holds."""
        end = self.counter.end_iteration
        document = {
            "updates_per_epoch": self.counter.updates_per_epoch,
            "effective_batch_size": self.counter.effective_batch_size,
            "accumulation_steps": self.accumulation_steps,
            "end": None if end is None else str(end),
            "callbacks": self._entries(),
        }
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True).encode("utf-8")

    def about(self) -> dict[str, Any]:
        """Return what the record of a start says of it."""
        return {
            "config": hashlib.sha256(self.yaml()).hexdigest(),
            "callbacks": json.loads(json.dumps(self._entries(), default=str)),
            "processes": self.processes,
        }

    def _entries(self) -> list[Any]:
        return [as_entry(callback.callback_config) for callback in self.callbacks]
