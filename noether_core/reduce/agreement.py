"""Make the processes of a training agree on the keys of a callback: by a hash while they do, by lists of keys where not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import listing
from noether_core.reduce.exchange import Exchange
from noether_core.reduce.partial import Partials, Vector
from noether_core.reduce.wire import NEUTRAL

NOTHING, REST, DUE = 0, 1, 2  # what a callback has: nothing to give, an interval that never ended, one that ends now
WORDS = 6  # of a callback, in the header
_MOST_UNSEEN = 1000  # keys that are remembered though nobody has them any more

_LONGEST = 200  # letters of a key that a warning shows
_ADVICE = (
    "Each number is of the processes that had its key; return the same keys in every process, or expect this, which is"
    " said once"
)

_Keys = tuple[str, ...]


class Offer(NamedTuple):
    """Say what a process has of one callback's interval.

    Attributes:
        partials: what is reduced.
        urgency: `NOTHING`, `REST` or `DUE`.
        lasts: the newest values that are single numbers, as statistics of one value each, under their keys.
    """

    partials: Partials
    urgency: int
    lasts: Partials

    def without_lasts(self) -> Offer:
        """Return it without newest values, where those are of an earlier update than the one that the interval ends with."""
        return self._replace(lasts=self.lasts.in_order(()))


class Agreement:
    """Remember the keys of one callback that the processes agreed on.

    Args:
        config: the callback's.

    Attributes:
        keys: of its values.
        lasts: of its newest single numbers.
    """

    def __init__(self, config: TrackAdditionalOutputsCallbackConfig) -> None:
        self.config = config
        self.keys: _Keys = ()
        self.lasts: _Keys = ()
        self.told: frozenset[str] | None = None  # the keys of the one warning that the processes' keys differ
        self._replicated: dict[str, bool] = {}
        self._hashes: tuple[Any, Any, int, int] = ((), (), 0, 0)

    def known(self, offer: Offer) -> tuple[_Keys, _Keys]:
        """Return the keys agreed on, and after them those that this process has besides."""
        if offer.partials.keys == self.keys and offer.lasts.keys == self.lasts:
            return self.keys, self.lasts
        return (
            tuple(dict.fromkeys([*self.keys, *offer.partials.keys])),
            tuple(dict.fromkeys([*self.lasts, *offer.lasts.keys])),
        )

    def header_words(self, offer: Offer, known: tuple[_Keys, _Keys], index: int) -> list[int]:
        """Return what a process has of the header.

        Its urgency; hashes of its keys, known and as they came, with negatives; its negated number, if it has any values.
        """
        keys = offer.partials.keys
        if self._hashes[:2] != (known, keys):
            self._hashes = known, keys, hash_of(known), hash_of(keys)
        _, _, schema, order = self._hashes
        return [offer.urgency, schema, -schema, order, -order, -index if keys else NEUTRAL]

    def replicated(self) -> Vector:
        """Return the places of the keys of which every process has the same value."""
        for key in self.keys if self.config.replicated else ():
            if key not in self._replicated:
                self._replicated[key] = self.config.is_replicated(key)
        return np.array([at for at, key in enumerate(self.keys) if self._replicated.get(key, False)], np.int64)

    def forget(self, seen: _Keys, lasts: _Keys) -> None:
        """Forget keys that nobody has any more, when they are many; all processes do so alike."""
        if len(self.keys) > 2 * len(seen) + _MOST_UNSEEN:
            self.keys, self.lasts = seen, lasts
            self._replicated.clear()


def agree(
    exchange: Exchange, agreements: Sequence[Agreement], known: Sequence[tuple[_Keys, _Keys]], words: Vector
) -> list[str]:
    """Make sure that all processes know the same keys of each callback; return what to warn of.

    Args:
        exchange: talks to the other processes.
        agreements: of each callback.
        known: the keys that this process knows, of each callback.
        words: what the header has of each callback, [callbacks, WORDS].
    """
    if (words[:, 1] == -words[:, 2]).all():
        for agreement, (keys, lasts) in zip(agreements, known, strict=True):
            agreement.keys, agreement.lasts = keys, lasts
        return []
    lists = [json.loads(data) for data in exchange.all_gather(json.dumps(known).encode("ascii"))]
    before = frozenset(key for agreement in agreements for key in agreement.told or ())
    differing: dict[str, tuple[int, ...]] = {}
    for number, agreement in enumerate(agreements):
        of_each = [each[number] for each in lists]
        agreement.keys, agreement.lasts = (
            tuple(dict.fromkeys([key for both in of_each for key in both[at]])) for at in (0, 1)
        )
        present = [set(keys) for keys, _ in of_each]
        lacking = {key: tuple(at for at, keys in enumerate(present) if key not in keys) for key in agreement.keys}
        if any(lacking.values()) and agreement.told is None:
            agreement.told = frozenset(key for key, processes in lacking.items() if processes)
            differing.update({key: lacking[key] for key in agreement.keys if key in agreement.told - before})
    return [_differences(differing, len(lists))] if differing else []


def _differences(lacking: Mapping[str, tuple[int, ...]], count: int) -> str:
    by_processes: dict[tuple[int, ...], list[str]] = {}
    for key, processes in lacking.items():
        by_processes.setdefault(processes, []).append(key[:_LONGEST])
    told = "; ".join(
        f"in {count - len(processes)} of them, not in process {', '.join(map(str, processes))}: {listing(keys)}"
        for processes, keys in by_processes.items()
    )
    return f"the update outputs of the {count} processes have different keys; {told}. {_ADVICE}"


def fewer(agreement: Agreement, keys: _Keys, contributors: Vector, count: int) -> list[str]:
    """Return what to warn of, once, where fewer processes had some keys of an interval than had others, though all had before.

    Args:
        agreement: of the callback.
        keys: of the interval's values.
        contributors: how many processes had each.
        count: how many processes there are.
    """
    if agreement.told is not None or not len(contributors):
        return []
    places = np.flatnonzero((contributors > 0) & (contributors < contributors.max())).tolist()
    lacked = {keys[at]: int(contributors[at]) for at in places if not agreement.config.is_replicated(keys[at])}
    if not lacked:
        return []
    agreement.told = frozenset(lacked)
    by_count: dict[int, list[str]] = {}
    for key, had in lacked.items():
        by_count.setdefault(had, []).append(key[:_LONGEST])
    told = "; ".join(f"in {had} of them: {listing(names)}" for had, names in by_count.items())
    said = f"the update outputs of the {count} processes have different keys from now on; {told}. {_ADVICE}"
    return [said]


def hash_of(value: object) -> int:
    """Return 62 bits of a hash of what JSON can hold."""
    data = json.dumps(value).encode("ascii")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big") >> 2
