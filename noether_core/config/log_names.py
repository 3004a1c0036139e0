"""Find callbacks that would log under one name: before training where the keys are known, else when they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from noether_core.config.base import NamedCallbackConfig
from noether_core.config.loop import LoopConfig, OwnValuesConfig
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.errors import DuplicateKeyError
from noether_core.schedule import RESERVED
from noether_core.select import select

_MOST = 2**17  # names that are remembered; keys that come and go all the time would make ever more


class _Claim(NamedTuple):
    owner: int
    what: str  # such as "the mean of 'loss'"
    title: str


class LogNames:
    """Remember who logs under which name."""

    def __init__(self) -> None:
        self._claims: dict[str, _Claim] = {}
        self._seen: set[tuple[int, tuple[str, ...]]] = set()

    def claim(
        self, owner: object, config: NamedCallbackConfig, keys: tuple[str, ...] = (), title: str | None = None
    ) -> None:
        """Note what a callback logs that tracks these keys; on an error everything stays as it was.

        Args:
            owner: the callback, or what else tells it apart for as long as this is used.
            config: the callback's.
            keys: those of update outputs that it tracks.
            title: what messages call it; None: by its config.

        Raises:
            DuplicateKeyError: if one of the names is another one's already, or that of two of its own values, or one that each
                entry of the log has for itself.
        """
        number = id(owner)
        if (number, keys) in self._seen:  # at nearly every step
            return
        if len(self._claims) > _MOST or len(self._seen) > _MOST:
            self._claims.clear()
            self._seen.clear()
        new: dict[str, _Claim] = {}
        title = title_of(config) if title is None else title
        for name, what in _names(config, keys):
            own = _Claim(number, what, title)
            held = self._claims.get(name) or new.setdefault(name, own)
            if name in RESERVED:
                raise DuplicateKeyError(
                    f"{title} would log {what} as {name!r}, which each entry of the log has for itself; write"
                    f" {_other_name(config)}"
                )
            if held[:2] != own[:2]:
                raise DuplicateKeyError(
                    f"{name!r} would be logged twice: as {held.what} by {held.title}, and as {what} by"
                    f" {title if title != held.title or number == held.owner else 'another one like it'}. {_advice(config)}"
                )
        self._claims.update(new)
        self._seen.add((number, keys))


def _names(config: NamedCallbackConfig, keys: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Yield each name that a callback logs under, and what that is."""
    if isinstance(config, TrackAdditionalOutputsCallbackConfig):
        for key in keys:
            for name, reduction in config.log_keys(key):
                yield name, f"the {reduction} of {key!r:.200}"
    elif isinstance(config, LoopConfig):
        for name in dict.fromkeys(config.logs):
            yield name, "its own"


def _advice(config: NamedCallbackConfig) -> str:
    """Return what to do, with a line that sets a callback's names apart from others'."""
    other = _other_name(config)
    return f"Log it once, or give the second another name: {other}" if other else "Leave one of them out"


def _other_name(config: NamedCallbackConfig) -> str:
    if not isinstance(config, TrackAdditionalOutputsCallbackConfig | OwnValuesConfig):
        return ""
    return f'log_as: "other/{config.naming.template}"'


def check_names(configs: Sequence[NamedCallbackConfig], keys: Iterable[str] = ()) -> None:
    """Raise `DuplicateKeyError` if callbacks of one run would log one of the keys that their configs name under one name.

    Args:
        configs: of the callbacks.
        keys: of update outputs that are known besides.
    """
    tracking = [each for each in configs if isinstance(each, TrackAdditionalOutputsCallbackConfig)]
    known = tuple(dict.fromkeys([*(key for config in tracking for key in config.keys or ()), *keys]))
    names, owners = LogNames(), [object() for _ in configs]
    for owner, config in zip(owners, configs, strict=True):
        names.claim(owner, config, tracked_of(config, known))


def tracked_of(config: NamedCallbackConfig, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of these keys a callback tracks by its keys and patterns."""
    if not isinstance(config, TrackAdditionalOutputsCallbackConfig):
        return ()
    return select(config.keys or (), config.patterns or (), known).tracked


def title_of(config: NamedCallbackConfig) -> str:
    """Return what messages call a callback of this config.

    >>> title_of(TrackAdditionalOutputsCallbackConfig(every_n_updates=3, keys=["v"]))
    "TrackAdditionalOutputsCallback(every_n_updates=3, keys=['v'], patterns=[])"
    """
    tracked = f", {config.tracked}" if isinstance(config, TrackAdditionalOutputsCallbackConfig) else ""
    return f"{config.name}({config.interval.verbose}{tracked})"
