"""Pool what the processes of a training have of an interval, so that each of them gets the numbers of all.

A pooling is a fixed number of collectives, whatever the keys, callbacks and processes:

1. an arrival, and the greatest of a header: what is due, whether the keys agree, which limbs the sums use;
2. the sum of limbs and counts;
3. where there are any: the greatest of extremes, and of positions of values that were not finite;
4. where values were not finite, or extremes are ints beyond 2^53: whose they were.

Where the keys do not agree, the lists of keys are exchanged once; everyone adopts the union, and remembers it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import NoetherError, listing
from noether_core.reduce.agreement import DUE, REST, WORDS, Agreement, Offer, agree, fewer
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.partial import Partials, Vector, spread
from noether_core.reduce.wire import (
    NEUTRAL,
    WINDOW_WORDS,
    Rows,
    Terms,
    greatest_words,
    has_second_parts,
    read_windows,
    read_words,
    sum_words,
    tie_words,
    window_words,
)

Iteration = tuple[int, int, int]  # epoch, update, sample


class Pooled(NamedTuple):
    """Hold what all processes have of one callback's interval.

    Attributes:
        partials: without `last` and `stack`.
        lasts: the newest single numbers, one of each process that has one.
        processes: of each key, the number of the process that had the first value that was not finite.
        contributors: how many processes had each key.
        first: the number of the first process that had any values; what is replicated is its.
        errors: what was raised of single keys.
    """

    partials: Partials
    lasts: Partials
    processes: Vector
    contributors: Vector
    first: int
    errors: Sequence[NoetherError] = ()

    @property
    def first_processes(self) -> dict[str, int]:
        """Return `processes` by key."""
        return dict(zip(self.partials.keys, self.processes.tolist(), strict=True))


class Round(NamedTuple):
    """Hold what a pooling gave.

    Attributes:
        iteration: the furthest that a process is at.
        pooled: by the number of a callback, of those that are due anywhere.
        are_all_final: whether every process has ended its training.
        failed: the number of a process that cannot go on; -1 if there is none.
        warnings: to be said once.
    """

    iteration: Iteration
    pooled: Mapping[int, Pooled]
    are_all_final: bool
    failed: int
    warnings: Sequence[str]


class _Own(NamedTuple):
    """Hold what this process gives: of each key, whether it has it, and a hash of its copy if every process has one."""

    partials: Partials
    seen: Vector
    copies: Vector | None


class Pool:
    """Pool the intervals of a run's callbacks.

    Args:
        exchange: talks to the other processes, which make the same calls.
        configs: the callbacks', in the same order in each process.
    """

    def __init__(self, exchange: Exchange, configs: Sequence[TrackAdditionalOutputsCallbackConfig]) -> None:
        self._exchange = exchange
        self._agreements = [Agreement(config) for config in configs]

    def pool(
        self,
        offers: Sequence[Offer],
        iteration: Iteration,
        what: str,
        *,
        is_final: bool = False,
        has_failed: bool = False,
    ) -> Round:
        """Return what all processes have together.

        Args:
            offers: one for each callback.
            iteration: where this process is.
            what: what they meet for, for the message of `ProcessesMissingError`.
            is_final: whether this process has ended its training.
            has_failed: whether it cannot say what it has; then every process gets to know.
        """
        self._exchange.arrive(what)
        known = [agreement.known(offer) for agreement, offer in zip(self._agreements, offers, strict=True)]
        state = [self._exchange.index + 1 if has_failed else 0, int(not is_final), *iteration]
        (failed, is_training, *furthest), of_each, terms = self._met(offers, known, state)
        warnings = agree(self._exchange, self._agreements, known, of_each)
        if iteration[1] < furthest[1]:
            offers = [offer.without_lasts() if offer.urgency == REST else offer for offer in offers]
        due = [] if failed else np.flatnonzero(of_each[:, 0] >= (DUE if is_training else REST)).tolist()
        pooled = {}
        for number, (found, told) in self._pooled(due, offers, -of_each[:, 5], terms).items():
            warnings += fewer(self._agreements[number], found.partials.keys, found.contributors, self._exchange.count)
            pooled[number] = _present(found, offers[number].partials.keys, of_each[number])
            self._agreements[number].forget(pooled[number].partials.keys, pooled[number].lasts.keys)
            warnings += told
        return Round((furthest[0], furthest[1], furthest[2]), pooled, not is_training, failed - 1, warnings)

    def _met(
        self, offers: Sequence[Offer], known: Sequence[tuple[tuple[str, ...], tuple[str, ...]]], state: Sequence[int]
    ) -> tuple[list[int], Vector, Terms]:
        """Exchange the header; return the greatest state, what it has of each callback, [callbacks, WORDS], and the terms."""
        parts = [part for offer in offers for part in (offer.partials, offer.lasts)]
        flags = [any(part.nonfinite.any() for part in parts), any(map(has_second_parts, parts))]
        words = [
            word
            for agreement, offer, keys in zip(self._agreements, offers, known, strict=True)
            for word in agreement.header_words(offer, keys, self._exchange.index)
        ]
        sent = [np.array([*state, *flags], np.int64), window_words(parts), np.array(words, np.int64)]
        header = self._exchange.all_reduce_max(np.concatenate(sent))
        own, windows, of_each = np.split(header, [len(sent[0]), len(sent[0]) + WINDOW_WORDS])
        *greatest, has_nonfinite, has_seconds = own.tolist()
        return (
            greatest,
            of_each.reshape(-1, WORDS),
            Terms(read_windows(windows), bool(has_nonfinite), bool(has_seconds)),
        )

    def _pooled(
        self, due: Sequence[int], offers: Sequence[Offer], firsts: Vector, terms: Terms
    ) -> dict[int, tuple[Pooled, list[str]]]:
        """Return what the processes have of the callbacks that are due, under all keys that are known, and warnings."""
        if not due:
            return {}
        own = [part for number in due for part in self._own(self._agreements[number], offers[number], firsts[number])]
        sums = _reduced(
            self._exchange.all_reduce_sum,
            [{"": sum_words(part.partials, part.seen, terms)} for part in own],
        )
        mine = [greatest_words(part.partials, part.copies, terms) for part in own]
        most = _reduced(self._exchange.all_reduce_max, mine)
        tied = [
            tie_words(part.partials, rows, greatest, terms, self._exchange.index)
            for part, rows, greatest in zip(own, mine, most, strict=True)
        ]
        ties = _reduced(self._exchange.all_reduce_max, tied)
        read = [
            read_words(part.partials, terms, words[""], greatest, tie)
            for part, words, greatest, tie in zip(own, sums, most, ties, strict=True)
        ]
        found = {}
        for at, number in enumerate(due):
            (partials, contributors), (lasts, _) = read[2 * at : 2 * at + 2]
            processes = -ties[2 * at].get("process", np.ones(len(partials.keys), np.int64))
            pooled = Pooled(partials, lasts, processes, contributors, int(firsts[number]))
            found[number] = pooled, _told_of_copies(pooled, most[2 * at])
        return found

    def _own(self, agreement: Agreement, offer: Offer, first: int) -> tuple[_Own, _Own]:
        """Return what this process gives of a callback, under all keys: the first one alone what every process has alike."""
        partials, keys = offer.partials, agreement.keys
        present = set(partials.keys)
        whole = spread(partials, keys)
        seen = np.array([key in present for key in keys], np.int64)
        copies = np.full(len(keys), NEUTRAL, np.int64) if agreement.config.replicated else None
        alike = agreement.replicated()
        own = alike[whole.elements[alike] > 0]  # not of a value that another process counts
        if copies is not None and own.size:
            copies[own] = _hashes(whole.take(own))
        lasts = offer.lasts
        if len(alike) and self._exchange.index != first:
            seen[alike] = 0
            whole = _without(whole, alike)
            lasts = _without(lasts, np.flatnonzero([agreement.config.is_replicated(key) for key in lasts.keys]))
        lasts = spread(lasts, agreement.lasts)
        return _Own(whole, seen, copies), _Own(lasts, lasts.elements, None)


def _without(partials: Partials, places: Vector) -> Partials:
    """Return what the keys have, and nothing of those at some places."""
    return spread(partials.take(np.setdiff1d(np.arange(len(partials.keys)), places)), partials.keys)


def _reduced(all_reduce: Callable[[Vector], Vector], blocks: Sequence[Rows]) -> list[Rows]:
    """Return named rows after one collective of all of them; none if there are no rows."""
    rows = [row for block in blocks for row in block.values()]
    if not rows:
        return list(blocks)
    flat = all_reduce(np.concatenate([row.reshape(-1) for row in rows]))
    parts = iter(np.split(flat, np.cumsum([row.size for row in rows])[:-1]))
    return [{name: next(parts).reshape(row.shape) for name, row in block.items()} for block in blocks]


def _hashes(partials: Partials) -> list[int]:
    """Return 62 bits of a hash of what each key has."""
    parts = [part for value in partials.statistics for part in (value if isinstance(value, tuple) else (value,))]
    vectors = [vector + 0 for vector in (*parts[:-1], partials.elements)]  # not the position; no -0.0
    rows = np.stack([vector.view(np.int64) for vector in vectors], axis=1)
    return [int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "big") >> 2 for row in rows]


def _told_of_copies(pooled: Pooled, most: Rows) -> list[str]:
    """Return what to warn of, of keys that every process was to have alike."""
    if "copy" not in most:
        return []
    keys, contributors = pooled.partials.keys, pooled.contributors
    had = most["copy"] != NEUTRAL
    differ = [keys[at] for at in np.flatnonzero(had & (most["copy"] != -most["other"])).tolist()]
    absent = [keys[at] for at in np.flatnonzero(had & (contributors == 0)).tolist()]
    told = []
    if differ:
        told.append(
            f"the processes have different values of the replicated {listing(differ)}; those of process {pooled.first} are"
            " taken: reduce them over the processes in the training step, or take them out of `replicated`"
        )
    if absent:
        told.append(
            f"process {pooled.first} has no value of the replicated {listing(absent)}, so nothing is logged of it; return"
            " it in every process, or take it out of `replicated`"
        )
    return told


def _present(pooled: Pooled, keys: tuple[str, ...], words: Vector) -> Pooled:
    """Return what is there of the keys that some process has; in the order they came, if that is the same everywhere."""
    places = np.flatnonzero(pooled.contributors)
    order = pooled.partials.keys
    if words[3] == -words[4] and keys != order:
        at = {key: place for place, key in enumerate(order)}
        places = np.array([at[key] for key in keys if pooled.contributors[at[key]]], np.int64)
    return pooled._replace(
        partials=pooled.partials.take(places),
        lasts=pooled.lasts.take(np.flatnonzero(pooled.lasts.elements)),
        processes=pooled.processes[places],
        contributors=pooled.contributors[places],
    )
