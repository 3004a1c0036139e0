"""Read callbacks' configs: from mappings, and from the YAML that holds a list of them."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from noether_core.config.base import NOETHER_KINDS, CallbackBaseConfig, NamedCallbackConfig
from noether_core.config.log_names import check_names
from noether_core.config.loop import LOOP_CONFIGS
from noether_core.config.readable import entitled
from noether_core.config.tracking import TrackAdditionalOutputsCallbackConfig
from noether_core.config.yaml_file import parse_yaml, read_text
from noether_core.errors import ConfigFileError, NoetherError, listing, suggest

CallbackConfig = NamedCallbackConfig
_CONFIGS: tuple[type[CallbackConfig], ...] = (TrackAdditionalOutputsCallbackConfig, *LOOP_CONFIGS)
KINDS = {config.model_fields["name"].default: config for config in _CONFIGS}


def parse_callback(entry: Any, where: str = "callback") -> CallbackConfig:
    """Return the config that a mapping describes: of the class that `kind` (or `name`) says, else the tracking callback's.

    Raises:
        ConfigFileError: if `entry` is no mapping or its `kind` is not known here.
        pydantic.ValidationError: if a field is wrong.
    """
    if isinstance(entry, CallbackConfig):
        return entry
    if not isinstance(entry, Mapping):
        raise ConfigFileError(
            f"{where} is {type(entry).__name__} {entry!r:.200}; expected a mapping with `kind` and its fields"
        )
    strange = [name for name in entry if not isinstance(name, str)]
    if strange:
        raise ConfigFileError(
            f"{where} has the field {strange[0]!r:.200} of type {type(strange[0]).__name__}; a field's name is text"
        )
    kind = entry.get("kind") or entry.get("name")
    known = TrackAdditionalOutputsCallbackConfig.model_fields["name"].default
    if isinstance(kind, str):
        known = kind.removeprefix(NOETHER_KINDS)
        if known not in KINDS:
            raise ConfigFileError(
                f"{where} has kind {kind!r:.200}; the kinds known here: {listing(KINDS)}.{suggest(known, KINDS)}"
            )
    try:
        return KINDS[known](**entry)
    except ValidationError as error:
        raise entitled(error, where) from None


def load_callbacks(path: str | Path) -> list[CallbackConfig]:
    """Read a YAML file with a `callbacks:` list, as Noether's trainers have; other top-level entries are left alone.

    Raises:
        ConfigFileError: if the file is absent, is no YAML, or holds no such list.
        pydantic.ValidationError: if a callback's field is wrong.
    """
    return [parse_callback(entry, f"callbacks[{i}] in {str(path)!r}") for i, entry in enumerate(_entries(Path(path)))]


def _entries(path: Path) -> list[Any]:
    document = parse_yaml(read_text(path), f"config file {str(path)!r}")
    entries = document.get("callbacks") if isinstance(document, Mapping) else document
    if not isinstance(entries, list):
        top = listing(map(str, document)) if isinstance(document, Mapping) else type(document).__name__
        raise ConfigFileError(f"config file {str(path)!r} has no `callbacks:` list (its top level: {top}); add one")
    return entries


def load_tracking(path: str | Path) -> list[TrackAdditionalOutputsCallbackConfig]:
    """Return the configs of the callbacks that track, as a run's `config.yaml` has them, also those that others hold.

    Callbacks of the user's own track nothing, as far as is known here. From the first on that cannot be read, there are none.

    Raises:
        ConfigFileError: if the file is absent, is no YAML, or holds no list of callbacks.
    """
    found = []
    for entry in _entries(Path(path)):
        try:
            config = parse_callback(entry)
        except ConfigFileError:  # the user's own
            continue
        except ValidationError:
            break
        held = getattr(config, "tracking", config)
        if isinstance(held, TrackAdditionalOutputsCallbackConfig):
            found.append(held)
    return found


def as_entry(config: CallbackBaseConfig) -> dict[str, Any]:
    """Return what `parse_callback` makes a config of: what was set of it, and its class."""
    entry = config.model_dump(exclude_unset=True)
    if "kind" in entry or "name" in entry or type(config) is TrackAdditionalOutputsCallbackConfig:
        return entry
    return {"kind": config.name if isinstance(config, NamedCallbackConfig) else type(config).__name__, **entry}


def _as_folder(name: str | None) -> str:
    """Return what names have alike that a disk may take for one: macOS and Windows tell no case, nor ways to write an accent.

    Windows leaves out dots and spaces at the end too.
    """
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", name or "").casefold()).rstrip(". ")


def check_together(configs: Sequence[CallbackConfig]) -> None:
    """Raise `NoetherError` if callbacks of one run would write the same files, or log under the same names."""
    places: dict[tuple[str, str], str | None] = {}
    for config in configs:
        if isinstance(config, TrackAdditionalOutputsCallbackConfig) and config.save_output:
            interval = str(config.interval)
            place = _as_folder(config.id), interval
            if place in places:
                other = places[place]
                ids = (
                    f"id {other!r}"
                    if other == config.id
                    else f"ids {other!r} and {config.id!r}, one name on some disks,"
                )
                raise NoetherError(
                    f"two callbacks with save_output, interval {interval} and {ids} would write the same files;"
                    f" give each an id of its own, such as id: {'_'.join([config.id or 'mine', '2'])}, or make them one"
                )
            places[place] = config.id
    check_names(configs)
