"""Tell a loop whether an update is probed, and take what it hands over."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from operator import or_
from typing import Any

from noether_core.errors import warn
from noether_core.probes.callback import ProbeCallback, probe_callbacks
from noether_core.probes.probed import KEY, Due, Probed
from noether_core.run import Run
from noether_core.run_state import Standing


class ProbedRun(Run):
    """Add to a run what a loop needs to probe; see `noether_core.run.Run`. The front-ends' classes have these."""

    _is_told = False  # of probes that are not due

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
            self._check_due(outputs[KEY])
            self.add_probes(outputs)
            outputs = {key: value for key, value in outputs.items() if key != KEY}
        super()._accumulation_step(outputs, *arguments)

    def _check_due(self, probed: Probed) -> None:
        """Warn once of what is probed though it is not due, as by a compiled function that knows what was due at first."""
        due = self.probes_due
        if self._is_told or (due and (due.arrays or not probed.arrays)):
            return
        self._is_told = True
        what = "arrays" if probed.arrays else "statistics"
        warn(
            f"run.step got {what} of update {self.counter.update + 1}, of which {'no arrays' if due else 'no probes'} are due;"
            " arrays that are not due are not saved. Pass `run.probes_due` as an argument to the function that calls `probe`:"
            " a compiled one that closes over it keeps what it was at first. To save more, set every_n_updates, arrays or"
            " arrays_at of the ProbeCallback."
        )

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
        for callback in probe_callbacks(self.callbacks):
            callback.add(probed)
