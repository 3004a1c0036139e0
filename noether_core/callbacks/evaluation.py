"""Track what an evaluation computes, with the training's configs and apart from its intervals."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from noether_core.algebra.position import decode_position
from noether_core.callbacks.base import CallbackBase
from noether_core.callbacks.emission import save_arrays
from noether_core.callbacks.meeting import POOLED
from noether_core.callbacks.online_loss import OnlineLossCallback
from noether_core.callbacks.pooling import Pooling
from noether_core.callbacks.track_outputs import TrackAdditionalOutputsCallback
from noether_core.emit.log_writer import LogWriter
from noether_core.errors import NoetherError, NonFiniteError
from noether_core.interrupts import Mark
from noether_core.reduce.accumulate import OutputAccumulator
from noether_core.reduce.agreement import DUE
from noether_core.reduce.computed import Computed
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import Partials
from noether_core.reduce.pool import Pooled
from noether_core.schedule import Counter
from noether_core.select import Selector, weight_of

_UPDATE = 1  # that an evaluation's values count as
Derive = Callable[[Any, Any], Any]


class Evaluation:
    """Reduce the outputs of an evaluation's steps, over all of it, and log them as `{prefix}/{key}`.

    What each tracking callback names of them is reduced as it says; a reduction's name follows the key where the callback's log
    keys have it, wherever its `log_as` puts it. A key that is absent is no error: an evaluation has no gradients. Keys that
    two callbacks log are logged once.

    Args:
        callbacks: the run's.
        prefix: what the log keys begin with, and what the directory of saved arrays is called.
        alone: whether this process evaluates without the others; by default all do, each its part.

    Raises:
        NoetherError: for a prefix that cannot be a directory's name, or is an interval's.
    """

    def __init__(self, callbacks: Sequence[CallbackBase], prefix: str, *, alone: bool = False) -> None:
        if (
            not isinstance(prefix, str)
            or not re.fullmatch(r"\w[\w.-]{0,99}", prefix)
            or re.fullmatch(r"[EUS]\d+", prefix)
        ):
            raise NoetherError(
                f"run.evaluate got prefix={prefix!r:.120}; expected a name of letters, digits, `_`, `-` and `.`, such as 'eval'"
                " or 'test', that is not an interval's, such as 'U10'"
            )
        self.prefix = prefix
        self.thread = threading.get_ident()  # whose steps are the evaluation's
        self._given: dict[str, Any] = {}
        self._alone = alone
        self._parts = [
            _Part(callback, None) for callback in callbacks if isinstance(callback, TrackAdditionalOutputsCallback)
        ]
        self._parts += [
            _Part(callback.tracking, callback.derived)
            for callback in callbacks
            if isinstance(callback, OnlineLossCallback)  # a learning rate is none of an evaluation's
        ]

    def add(self, steps: Sequence[Mapping[str, Any] | None], losses: Any = None) -> None:
        """Merge the outputs of steps in, one after the other; a step that raises changes nothing.

        Raises:
            UpdateOutputError: for a value that cannot be tracked.
        """
        for update_outputs in steps:
            self._add(update_outputs, losses)

    def _add(self, update_outputs: Mapping[str, Any] | None, losses: Any) -> None:
        with Mark(each for part in self._parts for each in part.stateful()):
            for part in self._parts:
                part.step(update_outputs, losses)

    def give_way(self, values: Mapping[str, Any]) -> None:
        """Log these numbers of a trainer's at the end, but for those whose name is logged already or was tracked."""
        self._given.update({f"{self.prefix}/{name}": value for name, value in values.items()})

    def log(self, writer: LogWriter, counter: Counter) -> None:
        """Log and save what was tracked, at the counter's iteration.

        Raises:
            NoetherError: for a key that cannot be reduced, saved or logged, after all the others are.
            NonFiniteError: for values that a config with `nonfinite: raise` refuses, after all is logged.
        """
        computed = self._computed(counter)
        scalars: dict[str, Any] = {}
        errors: list[Exception] = []
        for part, each in zip(self._parts, computed, strict=True):
            scalars = {**part.scalars(each, scalars), **scalars}
            errors += part.save(self.prefix, each, writer, counter)
        bound = writer.bind("run.evaluate")
        bound.add_scalars(scalars)
        for each in computed:
            errors += each.errors
        logged = bound.current_values()
        errors += bound.add_values({key: value for key, value in self._given.items() if key not in logged})
        if errors:
            raise errors[0]
        reports = [report for part, each in zip(self._parts, computed, strict=True) if (report := part.report(each))]
        if reports:
            raise NonFiniteError(
                f"the evaluation at {counter.cur_iteration} tracked values that are not finite. {'; '.join(reports)}. Its"
                " numbers are logged; nonfinite: propagate or nonfinite: skip goes on"
            )

    def _computed(self, counter: Counter) -> list[Computed]:
        pooling = self._parts[0].pooling if self._parts and not self._alone else None
        if pooling is None:
            return [part.computed(self.prefix, None) for part in self._parts]
        meeting = pooling.evaluating(self._parts)
        meeting.meet(dict.fromkeys(range(len(self._parts)), DUE), counter, update=_UPDATE)
        return [part.computed(self.prefix, meeting.take(part, counter)) for part in self._parts]


class _Part:
    """Track what one callback names."""

    def __init__(self, callback: TrackAdditionalOutputsCallback, derive: Derive | None) -> None:
        self._callback = callback
        self._derive = derive
        self.config = callback.config
        self._interval = OutputAccumulator(callback.backend, callback.config)
        self._selector = Selector(callback.keys, callback.patterns, callback.config.scalars)
        self._steps = 0
        self._processes: dict[str, int] = {}  # of several: the one that had a key's first value that was not finite

    @property
    def pooling(self) -> Pooling | None:
        return self._callback.partners.pooling

    def step(self, update_outputs: Any, losses: Any) -> None:
        derived = update_outputs if self._derive is None else self._derive(update_outputs, losses)
        if derived is not None:
            outputs, selection = self._selector(derived)
            weight = weight_of(self.config.weight, outputs) if selection.tracked else None
            self._interval.add(selection.tracked, selection.values(outputs), _UPDATE, self._steps, weight)
        self._steps += 1

    def stateful(self) -> Sequence[object]:
        return self, self._interval

    def own_partials(self) -> Partials:
        return self._interval.partials()

    def computed(self, prefix: str, pooled: Pooled | None) -> Computed:
        computation = Computation(self.config, self.config.naming_in_evaluation(prefix))
        if pooled is None:
            return computation.compute(self._interval.partials(), _UPDATE)
        self._processes = dict(zip(pooled.partials.keys, pooled.processes.tolist(), strict=True))
        return computation.compute(pooled.partials, POOLED, pooled.lasts, pooled.errors)

    def scalars(self, computed: Computed, others: Mapping[str, Any]) -> dict[str, Any]:
        return computed.scalars(others) if self.config.log_output else {}

    def save(self, prefix: str, computed: Computed, writer: LogWriter, counter: Counter) -> list[NoetherError]:
        out = self._callback.out
        if out is not None and (self.pooling is None or self.pooling.is_main) and (arrays := computed.arrays()):
            path = out.parent / prefix / f"{counter.cur_iteration}.safetensors"
            if (error := save_arrays(writer, path, arrays)) is not None:
                return [error]
        return []

    def report(self, computed: Computed) -> str:
        partials = computed.nonfinite
        if self.config.nonfinite != "raise" or partials is None:
            return ""
        first = [decode_position(int(position))[1] + 1 for position in partials.statistics.first_nonfinite]
        counts = zip(partials.keys, partials.nonfinite.tolist(), partials.elements.tolist(), first, strict=True)
        return "; ".join(
            f"{key!r}: {odd} of {elements} values, first in step {at}"
            + (f" of process {self._processes[key]}" if key in self._processes else "")
            for key, odd, elements, at in counts
        )
