"""Track a step's update outputs: select, reduce, and at the interval's end emit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Literal

from noether_core.callbacks.emission import log_computed, nonfinite_error, save_arrays
from noether_core.callbacks.hooks import next_position
from noether_core.callbacks.matches import Matched, Matches
from noether_core.callbacks.meeting import POOLED
from noether_core.callbacks.partners import Partners
from noether_core.callbacks.periodic import PeriodicCallback
from noether_core.callbacks.saved_interval import SavedInterval, packed_interval, read_interval
from noether_core.config.log_names import LogNames, title_of
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.errors import NoetherError
from noether_core.interrupts import Mark
from noether_core.reduce.accumulate import OutputAccumulator
from noether_core.reduce.backend import Backend
from noether_core.reduce.computed import Computed
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import Partials, PartialSource, merge_partials
from noether_core.reduce.pool import Pooled
from noether_core.schedule import Counter
from noether_core.select import Selector, select, weight_of


class TrackAdditionalOutputsCallback(PeriodicCallback):
    """Reduce the update outputs that a config names, and log or save them at every interval's end.

    The front-ends' classes of this name add the backend; use those. See `noether_core.config` for the fields.

    Args:
        callback_config: a `TrackAdditionalOutputsCallbackConfig`.
        title: what messages and `logging` call it; by default its class, interval, keys and patterns.
        backend: the front-end's, for a callback that holds this one; the front-ends' classes have theirs.
        processes: what talks to the other processes whose values are pooled with this one's; None: all that the framework was
            told of; 1: none. A run has one for all its callbacks.
        **arguments: see `CallbackBase`.

    Attributes:
        keys, patterns, reduce, verbose, log_output, save_output: as in the config.
        out: the directory of the saved arrays, or None.
        sources: give what was reduced, to be merged: of what the hooks were given, and elsewhere.
        partners: the other processes.

    Raises:
        NoetherError: if the config asks for what this version cannot do.
    """

    backend: Backend

    def __init__(
        self,
        callback_config: TrackAdditionalOutputsCallbackConfig,
        *,
        title: str | None = None,
        backend: Backend | None = None,
        processes: Exchange | Literal[1] | None = None,
        **arguments: Any,
    ) -> None:
        config = self.config = callback_config
        self._title = title
        if backend is not None:
            self.backend = backend
        self.keys, self.patterns = list(config.keys or []), list(config.patterns or [])
        self.reduce, self.log_output, self.save_output = config.reduce, config.log_output, config.save_output
        super().__init__(config, **arguments)
        self.out: Path | None = None
        if self.save_output:
            if self.output_path is None:
                raise NoetherError(f"{self} has save_output on, but output_path is None; give the run directory")
            self.out = self.output_path.joinpath("update_outputs", config.id or "", str(self.interval))
        self._interval = OutputAccumulator(self.backend, config)
        self.sources: list[PartialSource] = [self._interval]
        self._computation = Computation(config)
        self._selector = Selector(self.keys, self.patterns, config.scalars)
        self._matches = Matches(config, self._warn_once, self.logger, str(self), lambda: self.partners.is_main)
        self._position = (-1, -1)
        self._before = (self._position, self._matches.so_far, self._interval.now)
        self._emitted_at = -1
        self._unmatched: list[str] = []
        self.partners = Partners(self, self.backend, processes, self.output_path, self.log_writer)

    def __str__(self) -> str:
        return self._title or title_of(self.config)

    # ------------------------------------------------------------------ each accumulation step

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Note where training starts, and meet the other processes, if there are any."""
        super().before_training(update_counter=update_counter)
        self._position = (-1, -1)
        self.partners.begin(repr(self.config).encode("utf-8", "backslashreplace"))

    def track_after_accumulation_step(
        self,
        *,
        update_counter: Counter,
        update_outputs: Any = None,
        accumulation_steps: int = 1,
        accumulation_step: int = 0,
        **_: Any,
    ) -> None:
        """Merge this step's outputs into the interval; None has nothing to track.

        Args:
            update_counter: shows what was completed before this update.
            update_outputs: a dict from names to scalars or arrays, nested dicts allowed.
            accumulation_steps: how many accumulation steps an update has.
            accumulation_step: which of them this is, from 0.

        Raises:
            MissingKeyError: if an exact key is absent and `missing` is `error`.
            DuplicateKeyError: if another callback of the run logs under one of the names.
            UpdateOutputError: for a value that cannot be tracked.
            HookOrderError: if the hooks come in an order that would give wrong numbers.
        """
        super().track_after_accumulation_step(update_counter=update_counter)
        position = next_position(self._position, update_counter.update, accumulation_steps, accumulation_step)
        before = (self._position, self._matches.so_far, self._interval.now)
        try:
            if update_outputs is not None:
                outputs, selection = self._selector(update_outputs)
                self._matches.look(selection, outputs)
                tracked = selection.tracked
                weight = weight_of(self.config.weight, outputs) if tracked else None
                self._interval.add(tracked, selection.values(outputs), position[0] + 1, accumulation_step, weight)
                self._matches.add(selection)
            self._before, self._position = before, position
        except BaseException:
            self._position, self._matches.so_far, self._interval.now = before
            raise

    def track_after_update_step(self, *, update_counter: Counter, **_: Any) -> None:
        """Look, after the first update, whether the patterns match."""
        if not self._matches.is_checked and self.partners.pooling is None:  # else another process may have what matches
            self._matches.end_update()

    def track_no_outputs(self) -> None:
        """Do what `missing` says of the exact keys.

        Raises:
            MissingKeyError: if that is `error`.
        """
        if self.keys:
            self._matches.miss(select(self.keys, (), ()), {})

    def note_example(self, update_outputs: Mapping[str, Any]) -> None:
        """Note which keys and patterns match outputs like these, which one of `sources` will reduce; raises likewise."""
        outputs, selection = self._selector(update_outputs)
        self._matches.look(selection, outputs)
        self._matches.add(selection)

    def undo_accumulation_step(self) -> None:
        """Forget the last `track_after_accumulation_step`."""
        self._position, self._matches.so_far, self._interval.now = self._before

    def has_tracked(self, update: int, accumulation_step: int) -> bool:
        """Tell whether the last `track_after_accumulation_step` was this step's."""
        return self._position == (update, accumulation_step)

    def join(self, names: LogNames) -> None:
        """Look among the names of a run's callbacks whether another one has those of this one."""
        self._matches.names = names

    def stateful(self) -> Sequence[object]:
        """Return the objects whose attributes are the callback's state."""
        return [self, self._matches, *self.sources]

    def mark(self) -> Callable[[], None]:
        """Return a function that brings the callback back to where it stands: what an interval's end changes, for speed."""
        matches, interval = self._matches, self._interval
        kept = self._reached, self._emitted_at, self._unmatched, matches.so_far, interval.now
        others = Mark(self.sources[1:]) if len(self.sources) > 1 else None

        def go_back() -> None:
            self._reached, self._emitted_at, self._unmatched, matches.so_far, interval.now = kept
            if others is not None:
                others.go_back()

        return go_back

    @property
    def has_values(self) -> bool:
        """Tell whether the hooks were given values in the interval under way. Reading it waits for nothing."""
        return self._interval.has_values

    # ------------------------------------------------------------------ the interval's end

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Log and save the interval under way, if training ended in its middle.

        Steps of an update that never ended belong to no iteration: what comes after the last interval's end is left out.
        If training ends in an update's middle, `last` writes nothing for a key that this update had a value of: it keeps the
        newest value only, and that one is of no iteration.
        """
        if self.partners.pooling is None and self.has_rest(update_counter):
            self._emit(update_counter)
        self.partners.finish(update_counter, getattr(self.log_writer, "writer", None))  # of a `LogWriter`

    def has_rest(self, update_counter: Counter) -> bool:
        """Tell whether there is an interval under way that is to be logged when training ends; drop what is not."""
        if not self.own_partials().keys:
            return False
        if self._emitted_at == update_counter.update:
            self.logger.warning("training ended in an update's middle, right after an interval: its steps are left out")
            self._reset()
            return False
        return True

    def _emit(self, update_counter: Counter) -> None:
        pooling = self.partners.pooling
        try:
            pooled = None if pooling is None else pooling.take(self, update_counter)
            computed = self._computed(update_counter.update) if pooled is None else self._computed_of_all(pooled)
        finally:  # also of what cannot be fetched: it would mix with the next interval
            self._reset()
        self._emitted_at = update_counter.update
        self._write(computed, update_counter, pooled)

    def emit(self, update_counter: Counter, pooled: Pooled, *, resets: bool) -> None:
        """Log and save what all processes have; `resets` if this process's interval has ended too."""
        if resets:
            self._reset()
            self._emitted_at = update_counter.update
        self._write(self._computed_of_all(pooled), update_counter, pooled)

    def _reset(self) -> None:
        for source in self.sources:
            source.reset()
        self._unmatched = self._matches.unmatched()
        self._matches.so_far = Matched()

    def _write(self, computed: Computed, update_counter: Counter, pooled: Pooled | None) -> None:
        """Log and save an interval's numbers, and raise what is wrong with them."""
        error, writer = None, self.log_writer if self.log_output else None
        if self.partners.logs_to(self.log_writer) and (self.log_output or self.verbose):
            error = log_computed(writer, self.logger, computed, verbose=self.verbose)
        if self.out is not None and self.partners.is_main and (arrays := computed.arrays()):
            path = self.out / f"{update_counter.cur_iteration}.safetensors"
            error = error or save_arrays(self.log_writer, path, arrays)
        if error is not None or computed.errors:
            raise error or computed.errors[0]
        if self.config.nonfinite == "raise" and (odd := computed.nonfinite) is not None:
            raise nonfinite_error(str(self), odd, {} if pooled is None else pooled.first_processes)
        if self.partners.is_main:
            found = () if pooled is None else pooled.partials.keys
            unmatched = [pattern for pattern in self._unmatched if not any(pattern in key for key in found)]
            self._matches.warn_of(unmatched, "in a whole interval")

    def _computed(self, update: int) -> Computed:
        """Return what the interval under way gives at its end."""
        lone = self._interval.lone_values() if len(self.sources) == 1 else None
        if lone is None:
            return self._computation.compute(self.own_partials(), update)
        return self._computation.of_lone_values(lone[0].keys, lone[0].wide, lone[1])

    def _computed_of_all(self, pooled: Pooled) -> Computed:
        return self._computation.compute(pooled.partials.keys_first(self.keys), POOLED, pooled.lasts, pooled.errors)

    def own_partials(self) -> Partials:
        """Return what this process has of the interval under way, the config's keys first. This waits for the device."""
        return reduce(merge_partials, [source.partials() for source in self.sources]).keys_first(self.keys)

    # ------------------------------------------------------------------ what others may read

    @property
    def tracked_values(self) -> dict[str, list[Any]]:
        """Return, for each key of the interval under way, its finished values so far. Reading it waits for the device."""
        partials = self.own_partials()
        values: dict[str, list[Any]] = {key: [] for key in partials.keys}
        for key in partials.keys:  # each as of the last update that it had
            newest = partials.last.get(key)
            of_key = self._computation.compute(partials.in_order((key,)), -1 if newest is None else newest.update)
            values[key] = [array.item() if array.ndim == 0 else array for array in of_key.arrays().values()]
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the interval under way as plain arrays, numbers and strings, the same for every framework."""
        matched = self._matches.so_far
        return packed_interval(
            SavedInterval(self.own_partials(), self._reached, self._position, matched, self._emitted_at)
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, here or in another framework.

        Raises:
            NoetherError: for a state of another form; the callback stays as it was.
        """
        saved = read_interval(state, str(self), fields_of(self.config))
        with Mark(self.stateful()):
            self._interval.load(saved.partials)
            self._reached, self._position, self._matches.so_far = saved.reached, saved.position, saved.matched
            self._emitted_at = saved.emitted_at
