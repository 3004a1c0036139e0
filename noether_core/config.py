"""Say what to track: the schemas of the callbacks and the YAML that holds them. All validation of a config is here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, TypeAdapter, field_validator, model_validator

from noether_core.errors import ConfigFileError, NoetherError, listing, suggest
from noether_core.schedule import UNITS, Interval

Reduction = Literal["mean", "last", "sum", "min", "max", "std", "var", "count", "stack"]
Reductions = Reduction | list[Reduction]
PositiveInt = Annotated[int, Field(strict=True, ge=1)]

_NOETHER_KINDS = "noether.core.callbacks."


class CallbackBaseConfig(BaseModel):
    """Hold what every callback's config has. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: StrictStr | None = Field(default=None, min_length=1)
    id: StrictStr | None = Field(default=None, min_length=1)

    @field_validator("id")
    @classmethod
    def _id_names_a_folder(cls, value: str | None) -> str | None:
        if value is not None and (value in {".", ".."} or set(value) & set('/\\\0<>:"|?*')):
            raise ValueError(
                f"id {value!r} names a folder and a checkpoint entry; use letters, digits, '-', '_' and '.'"
            )
        return value


class PeriodicCallbackConfig(CallbackBaseConfig):
    """Add the interval: exactly one of the three `every_n_*` fields."""

    every_n_epochs: PositiveInt | None = None
    every_n_updates: PositiveInt | None = None
    every_n_samples: PositiveInt | None = None
    batch_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        given = {f"every_n_{unit}s": n for unit in UNITS if (n := getattr(self, f"every_n_{unit}s")) is not None}
        if len(given) != 1:
            arrived = ", ".join(f"{name}={n}" for name, n in given.items()) or "none of them"
            raise ValueError(
                f"got {arrived}; set exactly one of every_n_epochs, every_n_updates and every_n_samples"
                " (for two intervals, write two callbacks)"
            )
        return self

    @property
    def interval(self) -> Interval:
        """Return the one interval that is set."""
        unit = next(unit for unit in UNITS if getattr(self, f"every_n_{unit}s") is not None)
        return Interval(unit, getattr(self, f"every_n_{unit}s"))


class TrackAdditionalOutputsCallbackConfig(PeriodicCallbackConfig):
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
        if self.kind is not None and self.kind.removeprefix(_NOETHER_KINDS) != self.name:
            raise ValueError(
                f"kind {self.kind!r} is not {self.name}; use {_NOETHER_KINDS + self.name!r}, {self.name!r}, or leave it out"
            )
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


CallbackConfig = TrackAdditionalOutputsCallbackConfig


def parse_callback(entry: Any, where: str = "callback") -> CallbackConfig:
    """Return the config that a mapping describes.

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
    kind = entry.get("kind", entry.get("name"))
    known = CallbackConfig.model_fields["name"].default
    if isinstance(kind, str) and kind and kind.removeprefix(_NOETHER_KINDS) != known:
        hint = suggest(kind.removeprefix(_NOETHER_KINDS), [known])
        raise ConfigFileError(f"{where} has kind {kind!r}; the kinds known here: {known!r}.{hint}")
    return TypeAdapter(CallbackConfig).validate_python(dict(entry))


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
        place = (config.id, str(config.interval))
        if config.save_output and place in places:
            raise NoetherError(
                f"two callbacks with save_output, interval {config.interval} and id {config.id!r} would write the same files;"
                " give each an id of its own, or make them one"
            )
        if config.save_output:
            places.add(place)
