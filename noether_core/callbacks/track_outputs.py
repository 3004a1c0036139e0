"""Track a step's update outputs: select, reduce, and at the interval's end emit."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any

from noether_core.algebra.position import decode_position
from noether_core.callbacks.periodic import IntervalType, PeriodicCallback
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.emit.arrays import write_arrays
from noether_core.emit.log_writer import ScalarWriter
from noether_core.errors import HookOrderError, MissingKeyError, NoetherError, NonFiniteError, listing, suggest
from noether_core.reduce.accumulate import OutputAccumulator
from noether_core.reduce.backend import Backend
from noether_core.reduce.finish import Computation, Computed
from noether_core.reduce.partial import Partials, PartialSource, merge_partials
from noether_core.reduce.state import pack, unpack
from noether_core.schedule import Counter
from noether_core.select import Selection, flatten, is_flat, missing_key_message, require, select


class TrackAdditionalOutputsCallback(PeriodicCallback):
    """Reduce the update outputs that a config names, and log or save them at every interval's end.

    The front-ends' classes of this name add the backend; use those. See `noether_core.config` for the fields.

    Attributes:
        keys, patterns, reduce, verbose, log_output, save_output: as in the config.
        out: the directory of the saved arrays, or None.
        sources: give what was reduced, to be merged: of what the hooks were given, and elsewhere.

    Raises:
        NoetherError: if the config asks for what this version cannot do.
    """

    backend: Backend

    def __init__(
        self,
        callback_config: TrackAdditionalOutputsCallbackConfig,
        *,
        log_writer: ScalarWriter,
        output_path: str | Path | None = None,
        name: str | None = None,
        **trainer_arguments: Any,
    ) -> None:
        config = self.config = callback_config
        self.keys, self.patterns = list(config.keys or []), list(config.patterns or [])
        self.reduce, self.verbose = config.reduce, config.verbose
        self.log_output, self.save_output = config.log_output, config.save_output
        super().__init__(config, log_writer=log_writer, output_path=output_path, name=name, **trainer_arguments)
        if self.save_output and self.output_path is None:
            raise NoetherError(
                f"{self} has save_output on, but output_path is None; give the run directory as output_path"
            )
        self.out: Path | None = None
        if self.save_output and self.output_path is not None:
            self.out = self.output_path.joinpath(
                "update_outputs", *([config.id] if config.id else []), str(self.interval)
            )
        self._interval = OutputAccumulator(self.backend, config)
        self.sources: list[PartialSource] = [self._interval]
        self._computation = Computation(config)
        self._selections: dict[tuple[str, ...], Selection] = {}
        self._matched: set[str] = set()
        self._steps = 0
        self._warned: set[str] = set()
        self._position = (-1, -1)
        self._before = (self._position, 0, frozenset[str]())
        self._emitted_at = -1

    def __str__(self) -> str:
        keys, patterns = self.config.keys or [], self.config.patterns or []
        return f"TrackAdditionalOutputsCallback({self.interval.verbose}, keys={keys}, patterns={patterns})"

    # ------------------------------------------------------------------ each accumulation step

    def before_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Note where training starts."""
        super().before_training(update_counter=update_counter)
        self._position = (-1, -1)

    def track_after_accumulation_step(
        self,
        *,
        update_counter: Counter,
        update_outputs: Any = None,
        batch: Any = None,
        losses: Any = None,
        accumulation_steps: int = 1,
        accumulation_step: int = 0,
        **_: Any,
    ) -> None:
        """Merge this step's outputs into the interval; None has nothing to track.

        Args:
            update_counter: shows what was completed before this update.
            update_outputs: a dict from names to scalars or arrays, nested dicts allowed.
            batch: ignored.
            losses: ignored.
            accumulation_steps: how many accumulation steps an update has.
            accumulation_step: which of them this is, from 0.

        Raises:
            MissingKeyError: if an exact key is absent and `missing` is `error`.
            UpdateOutputError: for a value that cannot be tracked.
            HookOrderError: if the hooks come in an order that would give wrong numbers.
        """
        super().track_after_accumulation_step(update_counter=update_counter)
        position = self._next_position(update_counter.update, accumulation_steps, accumulation_step)
        before = (self._position, self._steps, frozenset(self._matched))
        if update_outputs is not None:
            outputs, selection = self._selected(update_outputs)
            tracked = selection.tracked
            values = selection.values(outputs)
            weight = self._weight(outputs) if tracked else None
            self._interval.add(tracked, values, update_counter.update + 1, accumulation_step, weight)
            self._note_matches(selection)
        self._position = position
        self._before = before

    def note_example(self, update_outputs: Mapping[str, Any]) -> None:
        """Note which keys and patterns match outputs like these, which one of `sources` will reduce.

        Raises:
            MissingKeyError: if an exact key is absent and `missing` is `error`.
        """
        self._note_matches(self._select(tuple(flatten(update_outputs))))

    def undo_accumulation_step(self) -> None:
        """Forget the last `track_after_accumulation_step`."""
        self._position, self._steps, matched = self._before
        self._matched = set(matched)
        self._interval.undo()

    def _weight(self, outputs: Mapping[str, Any]) -> Any:
        name = self.config.weight
        if name is not None and name not in outputs:
            raise MissingKeyError(
                f"the weight {name!r} is not among the update outputs, which have {listing(outputs)}.{suggest(name, outputs)}"
                " It must be there at every step that has tracked values: correct the name, or return it"
            )
        return None if name is None else outputs[name]

    def _next_position(self, update: int, accumulation_steps: int, accumulation_step: int) -> tuple[int, int]:
        if not 0 <= accumulation_step < accumulation_steps:
            raise HookOrderError(
                f"accumulation_step={accumulation_step} of accumulation_steps={accumulation_steps};"
                f" expected 0 to {accumulation_steps - 1}: the steps of an update count from 0"
            )
        if (update, accumulation_step) <= self._position:
            raise HookOrderError(
                f"accumulation step {accumulation_step} after {update} updates came after step {self._position[1]} after"
                f" {self._position[0]} updates; expected later ones only. Count the update (next_update) before the next"
                " one's steps, or call before_training to start anew"
            )
        return update, accumulation_step

    def _selected(self, update_outputs: Any) -> tuple[Mapping[str, Any], Selection]:
        """Return the flat update outputs, and what is tracked of them."""
        if type(update_outputs) is dict:  # a flat one of a known key set needs no other look
            selection = self._selections.get(tuple(update_outputs))
            if selection is not None and not selection.missing and is_flat(update_outputs):
                return update_outputs, selection
        outputs = flatten(update_outputs)
        return outputs, self._select(tuple(outputs))

    def _select(self, available: tuple[str, ...]) -> Selection:
        selection = self._selections.get(available)
        if selection is None:
            if len(self._selections) >= 256:
                self._selections.clear()
            selection = self._selections[available] = select(self.keys, self.patterns, available)
        if selection.missing:
            if self.config.missing == "error":
                require(selection, available)
            elif self.config.missing == "warn":
                for key in selection.missing:
                    self._warn_once(key, missing_key_message(Selection((), (key,), {}), available))
        return selection

    def _note_matches(self, selection: Selection) -> None:
        self._steps += 1
        if len(self._matched) < len(self.patterns):
            self._matched.update(pattern for pattern, keys in selection.matches.items() if keys)

    def _warn_once(self, subject: str, message: str) -> None:
        if subject not in self._warned:
            self._warned.add(subject)
            warnings.warn(f"{self}: {message}", UserWarning, stacklevel=2)

    # ------------------------------------------------------------------ the interval's end

    def periodic_callback(self, *, interval_type: IntervalType, update_counter: Counter, **_: Any) -> None:
        """Log and save what the interval gave, and start the next. An evaluation leaves it untouched."""
        if interval_type != "eval":
            self._emit(update_counter)

    def after_training(self, *, update_counter: Counter, **_: Any) -> None:
        """Log and save the interval under way, if training ended in its middle.

        Steps of an update that never ended belong to no iteration: what comes after the last interval's end is left out.
        If training ends in an update's middle, `last` writes nothing for a key that this update had a value of: it keeps the
        newest value only, and that one is of no iteration.
        """
        if not self._partials().keys:
            return
        if self._emitted_at == update_counter.update:
            self.logger.warning("training ended in an update's middle, right after an interval: its steps are left out")
        else:
            self._emit(update_counter)

    def _emit(self, update_counter: Counter) -> None:
        self._refuse_processes()
        computed = self._computed(update_counter.update)
        unmatched = [pattern for pattern in self.patterns if self._steps and pattern not in self._matched]
        for source in self.sources:
            source.reset()
        self._matched.clear()
        self._steps = 0
        self._emitted_at = update_counter.update
        error = self._log(computed.scalars(str(self.interval))) if self.log_output else None
        if self.out is not None and (arrays := computed.arrays()):
            write_arrays(self.out / f"{update_counter.cur_iteration}.safetensors", arrays)
        if error is not None:
            raise error
        if self.config.nonfinite == "raise" and computed.nonfinite is not None:
            self._raise_nonfinite(computed.nonfinite)
        for pattern in unmatched:
            self._warn_once(
                pattern, f"pattern {pattern!r} matched no update output in a whole interval; correct or drop it"
            )

    def _computed(self, update: int) -> Computed:
        """Return what the interval under way gives at its end."""
        lone = self._interval.lone_values() if len(self.sources) == 1 else None
        if lone is None:
            return self._computation.compute(self._partials(), update)
        tallies, values = lone
        return self._computation.of_lone_values(tallies.keys, tallies.wide, values)

    def _log(self, scalars: Mapping[str, Any]) -> Exception | None:
        """Log everything that can be logged; return the first error."""
        first = None
        for log_key, value in scalars.items():
            try:
                self.log_writer.add_scalar(
                    key=log_key,
                    value=value,
                    logger=self.logger if self.verbose else None,
                    format_str=".5f" if self.verbose else None,
                )
            except Exception as error:
                first = first or error
        return first

    def _partials(self) -> Partials:
        """Return what the interval under way has, the config's keys first. This waits for the device."""
        partials = reduce(merge_partials, [source.partials() for source in self.sources])
        if partials.keys[: len(self.keys)] == tuple(self.keys):
            return partials
        present = set(partials.keys)
        exact = (key for key in self.keys if key in present)
        return partials.in_order(tuple(dict.fromkeys([*exact, *partials.keys])))

    def _refuse_processes(self) -> None:
        _, processes = self.backend.processes()
        if processes > 1:
            raise NoetherError(
                f"{self} runs in one of {processes} processes; this version reduces within one process only,"
                " so the numbers would be this process's alone. Train in one process"
            )

    def _raise_nonfinite(self, partials: Partials) -> None:
        report = []
        process, _ = self.backend.processes()
        for key, nan, positive, negative, position, elements in zip(
            partials.keys, *partials.statistics[-4:], partials.elements, strict=True
        ):
            update, step = decode_position(int(position))
            report.append(
                f"{key!r}: {nan} NaN, {positive} +inf, {negative} -inf of {elements} values, first at update {update},"
                f" accumulation step {step}, process {process}"
            )
        raise NonFiniteError(
            f"{self} tracked values that are not finite. {'; '.join(report)}. The interval's numbers are logged;"
            " nonfinite: propagate or nonfinite: skip goes on training"
        )

    # ------------------------------------------------------------------ what others may read

    @property
    def tracked_values(self) -> dict[str, list[Any]]:
        """Return, for each key of the interval under way, its finished values so far. Reading it waits for the device."""
        partials = self._partials()
        values: dict[str, list[Any]] = {key: [] for key in partials.keys}
        for key in partials.keys:  # each as of the last update that it had
            newest = partials.last.get(key)
            of_key = self._computation.compute(partials.in_order((key,)), -1 if newest is None else newest.update)
            values[key] = [array.item() if array.ndim == 0 else array for array in of_key.arrays().values()]
        return values

    def state_dict(self) -> dict[str, Any]:
        """Return the interval under way as plain arrays, numbers and strings, the same for every framework."""
        return pack(
            self._partials(), fields_of(self.config), self._reached, self._position, self._steps, sorted(self._matched)
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned, here or in another framework.

        Raises:
            NoetherError: for a state of another form; the callback stays as it was.
        """
        loaded = unpack(state)
        wanted = fields_of(self.config)
        if loaded.fields != wanted and loaded.partials.keys:
            raise NoetherError(
                f"the state has the fields {loaded.fields._asdict()}, {self} needs {wanted._asdict()}; load a state that was"
                " made with the same `reduce` and `weight`"
            )
        self._interval.load(loaded.partials)
        self._reached, self._position, self._steps = loaded.reached, loaded.position, loaded.steps
        self._matched = set(loaded.matched)
