"""Tell a loop whether an update is probed, and take what it hands over."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from noether_core.probes.callback import ProbeCallback, found_in, probe_callbacks
from noether_core.probes.probed import KEY, Due, Probed
from noether_core.run import Run
from noether_core.run_state import Standing

_logger = logging.getLogger(__name__)


class ProbedRun(Run):
    """Add to a run what a loop needs to probe; see `noether_core.run.Run`. The front-ends' classes have these."""

    _has_told = False  # that arrays came which are not due

    @property
    def probes_due(self) -> Due:
        """Say what is probed of the update under way; false if nothing is, so that `probe(run.probes_due, ...)` costs nothing.

        Raises:
            HookOrderError: if the run has no `ProbeCallback`.
        """
        number = self.counter.update + 1
        return reduce(or_, (callback.due(number) for callback in probe_callbacks(self.callbacks)))

    def _accumulation_step(self, outputs: Any, *arguments: Any) -> None:
        """Keep what was probed from callbacks that take update outputs as arrays; see `Run`."""
        if isinstance(outputs, Mapping) and isinstance(outputs.get(KEY), Probed):
            self.add_probes(outputs)
            outputs = {key: value for key, value in outputs.items() if key != KEY}
        super()._accumulation_step(outputs, *arguments)

    def _load(self, standing: Standing) -> None:
        super()._load(standing)
        for callback in self.callbacks:
            if isinstance(callback, ProbeCallback):
                callback.prepare(self.counter)

    def add_probes(self, probed: Any) -> None:
        """Take what `probe` returned, for the step that `run.step` counts next, where that gets no update outputs.

        Raises:
            HookOrderError: if the run has no `ProbeCallback`.
        """
        callbacks = probe_callbacks(self.callbacks)
        if not self._has_told and not self.probes_due.arrays and any(part.arrays for part in found_in(probed)):
            self._has_told = True
            _logger.warning(
                "no arrays are due of update %d, and its probe came with some, which are saved all the same. If that is not"
                " meant, give probe what run.probes_due says of each update; a compiled function gets it as an argument, and"
                " does not close over it",
                self.counter.update + 1,
            )
        for callback in callbacks:
            callback.add(probed)
