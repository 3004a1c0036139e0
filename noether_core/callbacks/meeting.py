"""Meet the other processes at an interval's end: offer what each callback has, and keep what came of it until it is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig, fields_of
from noether_core.emit.disk import Disk
from noether_core.emit.state_file import decode_state, encode_state
from noether_core.emit.unmerged import Unmerged, UnmergedFiles
from noether_core.errors import NoetherError, ProcessesMissingError, UpdateOutputError, listing, warn
from noether_core.reduce.agreement import DUE, NOTHING, REST, Offer
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.lasts import lasts_of
from noether_core.reduce.partial import Newest, Partials, Stack, merge_partials, no_partials
from noether_core.reduce.pool import Pool, Pooled, Round
from noether_core.reduce.stacking import stacked
from noether_core.reduce.state import pack, unpack
from noether_core.schedule import Counter

POOLED = 0  # what stands for the update of a newest value that is pooled


class Source(Protocol):
    """List what is needed of whoever has values to pool."""

    @property
    def config(self) -> TrackAdditionalOutputsCallbackConfig:
        """Return what is wanted of them."""

    def own_partials(self) -> Partials:
        """Return what this process has of the interval under way. This may wait for the device."""


class Meeting:
    """Pool what some callbacks have.

    Args:
        exchange: talks to the other processes.
        sources: the callbacks, in the same order in each process.
        path: the run directory, to which each process saves what it has before it meets the others; None saves nothing.
        disk: writes there; this process waits for it before it meets the others, unless it stalls.
        pool: pools what sources of the same configs have, if there is one already.

    Attributes:
        found: by a source's number, what it is to take: what all processes have, or an error.
        missed: what was raised where some processes did not come last time.
        start: names the start of the run, alike in all processes.
        number: how many times the processes were to meet.
    """

    def __init__(
        self,
        exchange: Exchange,
        sources: Sequence[Source],
        path: Path | None,
        pool: Pool | None = None,
        disk: Disk | None = None,
    ) -> None:
        self.exchange = exchange
        self.found: dict[int, Pooled | Exception] = {}
        self.missed: ProcessesMissingError | None = None
        self.start, self.number = "", 0
        self._sources = sources
        self._path = path
        self._disk = Disk() if disk is None else disk
        self._files = None if path is None else UnmergedFiles(path, exchange.index, exchange.count, self._disk)
        self._pool = Pool(exchange, [source.config for source in sources]) if pool is None else pool

    def meet(
        self, urgencies: Mapping[int, int], at: Counter, *, is_final: bool = False, update: int | None = None
    ) -> Round | None:
        """Pool, and keep what was found for `take`; None if some processes did not come.

        Args:
            urgencies: by a source's number, how urgent it is (`noether_core.reduce.agreement`); the others offer nothing.
            at: where this process is.
            is_final: whether it has ended its training.
            update: the update of which the newest values are; None: where it is.
        """
        update = int(at.update) if update is None else update
        offers, failure = self._offers(urgencies, update)
        self._save(urgencies, offers, at, is_final=is_final, is_whole=failure is None)
        what = _purpose(offers, at) if urgencies else "end the training"
        iteration = int(at.epoch), int(at.update), int(at.sample)
        try:
            found = self._pool.pool(offers, iteration, what, is_final=is_final, has_failed=failure is not None)
            is_behind = int(at.update) < found.iteration[1]
            pooled = self._with_arrays(found.pooled, offers, update, is_behind=is_behind)
        except ProcessesMissingError as error:
            self._advise(error)
            self.missed = error
            self.found = dict.fromkeys(urgencies, error)
            return None
        finally:
            self.number += 1
        if failure is None and found.failed >= 0:
            failure = NoetherError(
                f"process {found.failed} could not say what it has of the interval that ends at {at.cur_iteration}; its own"
                " error says why"
            )
        self.found = dict.fromkeys(urgencies, failure) if failure is not None else {**pooled}
        if self._files is not None:
            self._files.discard_before()  # the main process has come, so it has logged that
            if failure is None and (urgencies or is_final):
                self._files.set_pooled()
        for warning in found.warnings if self.exchange.index == 0 else ():
            warn(warning)
        return found

    def take(self, source: Source, at: Counter) -> Pooled:
        """Return what all processes have of what ends now; they meet for it, if they have not yet.

        Raises:
            ProcessesMissingError: if some did not come; NoetherError: if one cannot say what it has.
        """
        number = self._sources.index(source)
        if number not in self.found:
            self.meet({number: DUE}, at)
        found = self.found.pop(number)
        if isinstance(found, Exception):
            raise found
        return found

    def _offers(self, urgencies: Mapping[int, int], update: int) -> tuple[list[Offer], Exception | None]:
        offers, failure = [], None
        for number, source in enumerate(self._sources):
            none = no_partials(fields_of(source.config))
            offer = Offer(none, NOTHING, lasts_of(none, update))
            if number in urgencies:
                try:
                    partials = source.own_partials()
                    offer = Offer(partials, urgencies[number], lasts_of(partials, update))
                except Exception as error:
                    failure = failure or error
            offers.append(offer)
        return offers, failure

    def discard(self) -> None:
        """Forget what was saved and pooled, once the main process has logged it: it came to the next meeting, say."""
        if self._files is not None:
            self._files.discard()

    def wait_for_disk(self) -> None:
        """Wait until what was saved and logged so far is written; the others forget their part of it once we come."""
        self._disk.wait()
        self._disk.report()

    def save(self, urgencies: Mapping[int, int], at: Counter) -> None:
        """Save what this process has for meetings to which it will not come, for `noether-parity merge`."""
        offers, failure = self._offers(urgencies, int(at.update))
        self._save(urgencies, offers, at, is_final=True, is_whole=failure is None)

    def _save(
        self, urgencies: Mapping[int, int], offers: Sequence[Offer], at: Counter, *, is_final: bool, is_whole: bool
    ) -> None:
        if self._files is None or not (urgencies or is_final):
            return
        parts = {number: pack(offers[number].partials) for number in urgencies}
        who = self.exchange.index, self.exchange.count
        saved = Unmerged(at.cur_iteration, *who, parts, urgencies, self.start, self.number, is_final, is_whole)
        self._files.save(saved)
        self.wait_for_disk()

    def _advise(self, error: ProcessesMissingError) -> None:
        if self._path is not None:
            error.add_note(
                "What this process has of it is saved; when the others have saved theirs,"
                f" `noether-parity merge {self._path}` makes the entry"
            )

    # ------------------------------------------------------------------ arrays

    def _with_arrays(
        self, pooled: Mapping[int, Pooled], offers: Sequence[Offer], update: int, *, is_behind: bool
    ) -> dict[int, Pooled]:
        """Return what was pooled, on the main process with the arrays to save: gathered to it alone."""
        saved = [number for number in pooled if _saves_arrays(self._sources[number].config)]
        if not saved:
            return dict(pooled)
        updates = [POOLED if is_behind and offer.urgency == REST else update for offer in offers]
        state = {
            str(number): pack(self._arrays_of(number, offers, updates[number], pooled[number].first))
            for number in saved
        }
        gathered = self.exchange.gather_to_main(encode_state(state))
        if gathered is None:
            return dict(pooled)
        states = [decode_state(data, f"process {index}") for index, data in enumerate(gathered)]
        found = dict(pooled)
        for number in saved:
            parts = [unpack(state[str(number)]) for state in states]
            found[number] = _with_gathered(found[number], parts, self._sources[number].config)
        return found

    def _arrays_of(self, number: int, offers: Sequence[Offer], update: int, first: int) -> Partials:
        """Return the keys that have arrays: the newest values, as far as they are of this update, and the stacked ones.

        What is replicated is the first process's alone.
        """
        partials, config = offers[number].partials, self._sources[number].config
        last = {key: newest for key, newest in partials.last.items() if newest.update == update}
        own = [key for key in partials.keys if key in last or key in partials.stack]
        if config.replicated and self.exchange.index != first:
            own = [key for key in own if not config.is_replicated(key)]
        kept = set(own)
        return partials._replace(
            last={key: newest for key, newest in last.items() if key in kept},
            stack={key: stack for key, stack in partials.stack.items() if key in kept},
        ).in_order(tuple(own))


def _purpose(offers: Sequence[Offer], at: Counter) -> str:
    keys = listing(dict.fromkeys(key for offer in offers for key in offer.partials.keys))
    return f"pool the interval that ends at {at.cur_iteration}, of {keys}"


def _saves_arrays(config: TrackAdditionalOutputsCallbackConfig) -> bool:
    return config.save_output and bool({"last", "stack"} & config.asked)


def _with_gathered(pooled: Pooled, parts: Sequence[Partials], config: TrackAdditionalOutputsCallbackConfig) -> Pooled:
    """Return what was pooled with the processes' newest values along a leading axis, and their stacked ones in order."""
    merged = reduce(merge_partials, parts)
    last: dict[str, Newest] = {}
    stack: dict[str, Stack] = {}
    errors: list[NoetherError] = []
    for key in merged.keys:
        newest = [part.last[key].value for part in parts if key in part.last]
        try:
            if "last" in config.reductions(key) and newest:
                _require_one_shape(key, "last", newest)
                value = newest[0] if config.is_replicated(key) else stacked(key, newest)
                last[key] = Newest(value, POOLED, 0)
            if key in merged.stack:
                _require_one_shape(key, "stack", merged.stack[key].values)
                stack[key] = merged.stack[key]
        except NoetherError as error:
            errors.append(error)
    partials = pooled.partials._replace(last=last, stack=stack)
    return pooled._replace(partials=partials, errors=errors)


def _require_one_shape(key: str, reduction: str, values: Sequence[np.ndarray[Any, Any]]) -> None:
    shapes = list(dict.fromkeys(value.shape for value in values))
    if len(shapes) > 1:
        raise UpdateOutputError(
            f"update output {key!r} has the shapes {listing(map(str, shapes))} in the processes; `{reduction}` saves all"
            " of them along a leading axis, so it takes one shape: pad it, or reduce it with another reduction"
        )
