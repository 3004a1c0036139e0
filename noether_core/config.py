"""Say what to track: the tracking callback's schema, and the YAML that holds a list of callbacks.

`config_base.py` has what all callbacks' configs share, `loop_configs.py` those of the callbacks beside the tracking one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, StrictBool, StrictStr, field_validator, model_validator

from noether_core.config_base import NOETHER_KINDS, NamedCallbackConfig
from noether_core.errors import ConfigFileError, NoetherError, listing, suggest
from noether_core.loop_configs import LOOP_CONFIGS

Reduction = Literal["mean", "last", "sum", "min", "max", "std", "var", "count", "stack"]
Reductions = Reduction | list[Reduction]


class TrackAdditionalOutputsCallbackConfig(NamedCallbackConfig):
    """Say which update outputs to track, how to reduce them, and where they go.

    Raises:
        pydantic.ValidationError: for a field that is unknown, missing or out of range.

    >>> config = TrackAdditionalOutputsCallbackConfig(every_n_updates=10, keys=["loss"], reduce=["mean", "last"])
    >>> config.reductions("loss"), config.log_key("loss", "last")
    (('mean', 'last'), 'loss/last/U10')
    """

    name: Literal["TrackAdditionalOutputsCallback"] = "TrackAdditionalOutputsCallback"
    keys: list[StrictStr] | None = None
    patterns: list[StrictStr] | None = None
    reduce: Reductions | dict[StrictStr, Reductions] = "mean"
    weight: StrictStr | None = Field(default=None, min_length=1)
    verbose: StrictBool = False
    log_output: StrictBool = True
    save_output: StrictBool = False
    missing: Literal["error", "warn", "skip"] = "error"
    nonfinite: Literal["propagate", "skip", "raise"] = "propagate"

    @field_validator("keys", "patterns", mode="before")
    @classmethod
    def _is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"got the string {value!r}; write a list: [{value}]")
        return value

    @field_validator("reduce")
    @classmethod
    def _names_a_reduction(cls, value: Any) -> Any:
        for wanted in value.values() if isinstance(value, dict) else [value]:
            if isinstance(wanted, list) and not wanted:
                raise ValueError("got an empty list of reductions; name at least one, or leave `reduce` out for mean")
            if isinstance(wanted, list) and len(set(wanted)) < len(wanted):
                raise ValueError(f"got {wanted}; name each reduction once")
        return value

    @model_validator(mode="after")
    def _tracks_something(self) -> Self:
        if not self.keys and not self.patterns:
            raise ValueError("keys and patterns are both empty; name at least one exact key or one substring pattern")
        if "" in (self.keys or []):
            raise ValueError("keys holds an empty string; name the update output, or use patterns: [''] to track all")
        if not self.log_output and not self.save_output:
            raise ValueError("log_output and save_output are both false, so nothing would come out; set one to true")
        if "stack" in self.asked and not self.save_output:
            raise ValueError("reduce asks for stack, which is saved and never logged; set save_output to true")
        return self

    @property
    def asked(self) -> frozenset[Reduction]:
        """Return every reduction that some key may get."""
        wanted = [*self.reduce.values(), "mean"] if isinstance(self.reduce, dict) else [self.reduce]
        return frozenset(name for each in wanted for name in (each if isinstance(each, list) else [each]))

    def reductions(self, key: str) -> tuple[Reduction, ...]:
        """Return the reductions of one key: an exact name in `reduce` wins, then its first matching pattern, then mean."""
        wanted = self.reduce
        if isinstance(wanted, dict):
            patterns = (name for name in wanted if name in key)
            wanted = wanted[key] if key in wanted else wanted.get(next(patterns, ""), "mean")
        return tuple(wanted) if isinstance(wanted, list) else (wanted,)

    def log_key(self, key: str, reduction: Reduction) -> str:
        """Return the name under which a reduction of a key is logged."""
        is_plain = self.reduce in ("mean", "last", ["mean"], ["last"])
        return f"{key}/{self.interval}" if is_plain else f"{key}/{reduction}/{self.interval}"

    def tensor_name(self, key: str, reduction: Reduction) -> str:
        """Return the name under which a reduction of a key is saved: the raw key where it has only one."""
        return key if len(self.reductions(key)) == 1 else f"{key}/{reduction}"


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
            f"{where} is {type(entry).__name__} {entry!r}; expected a mapping with `kind` and its fields"
        )
    kind = entry.get("kind") or entry.get("name")
    known = TrackAdditionalOutputsCallbackConfig.model_fields["name"].default
    if isinstance(kind, str):
        known = kind.removeprefix(NOETHER_KINDS)
        if known not in KINDS:
            raise ConfigFileError(
                f"{where} has kind {kind!r}; the kinds known here: {listing(KINDS)}.{suggest(known, KINDS)}"
            )
    return KINDS[known].model_validate(dict(entry))


def load_callbacks(path: str | Path) -> list[CallbackConfig]:
    """Read a YAML file with a `callbacks:` list, as Noether's trainers have; other top-level entries are left alone.

    Raises:
        ConfigFileError: if the file is absent, is no YAML, or holds no such list.
        pydantic.ValidationError: if a callback's field is wrong.
    """
    path = Path(path)
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigFileError(
            f"config file {str(path)!r} does not exist; give a YAML file with a `callbacks:` list"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigFileError(f"config file {str(path)!r} cannot be read: {error}; give a YAML text file") from error
    except yaml.YAMLError as error:
        raise ConfigFileError(f"config file {str(path)!r} is not valid YAML: {error}") from error
    entries = document.get("callbacks") if isinstance(document, Mapping) else document
    if not isinstance(entries, list):
        top = listing(map(str, document)) if isinstance(document, Mapping) else type(document).__name__
        raise ConfigFileError(f"config file {str(path)!r} has no `callbacks:` list (its top level: {top}); add one")
    return [parse_callback(entry, f"callbacks[{i}] in {str(path)!r}") for i, entry in enumerate(entries)]


def check_together(configs: Sequence[CallbackConfig]) -> None:
    """Raise `NoetherError` if callbacks of one run would write the same files."""
    places: set[tuple[str | None, str]] = set()
    for config in configs:
        if not isinstance(config, TrackAdditionalOutputsCallbackConfig):
            continue
        place = (config.id, str(config.interval))
        if config.save_output and place in places:
            raise NoetherError(
                f"two callbacks with save_output, interval {config.interval} and id {config.id!r} would write the same files;"
                " give each an id of its own, or make them one"
            )
        if config.save_output:
            places.add(place)
