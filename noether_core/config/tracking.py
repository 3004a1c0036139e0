"""Say what to track: the tracking callback's schema, and what it asks of values."""

from __future__ import annotations

from collections.abc import Hashable
from math import prod
from typing import Any, Literal, Self

from pydantic import Field, StrictBool, StrictStr, field_validator, model_validator

from noether_core.algebra.sums import Fields
from noether_core.config.base import NamedCallbackConfig, Strings
from noether_core.config.naming import Naming, Template, checked_template, naming_of, refuse_one_name
from noether_core.errors import UpdateOutputError, listing, warn

Reduction = Literal["mean", "last", "sum", "min", "max", "std", "var", "count", "stack"]
Reductions = Reduction | list[Reduction]

NOTHING_COMES_OUT = "log_output, save_output and verbose are all false, so nothing comes out; set one to true"


class TrackAdditionalOutputsCallbackConfig(NamedCallbackConfig):
    """Say which update outputs to track, how to reduce them, and where they go.

    With `log_output`, `save_output` and `verbose` all false nothing comes out, which is warned about.

    Attributes:
        scalars: whether every output that is a single number is tracked too, also one that comes later.
        log_as: a template of the names of what is logged, with the fields `{key}`, `{reduction}` and `{interval}`; None: as
            Noether names it. How many values were not finite is logged with `nonfinite` for the reduction.

    Raises:
        pydantic.ValidationError: for a field that is unknown, missing or out of range.

    >>> config = TrackAdditionalOutputsCallbackConfig(every_n_updates=10, keys=["loss"], reduce=["mean", "last"])
    >>> config.reductions("loss"), config.log_key("loss", "last")
    (('mean', 'last'), 'loss/last/U10')
    """

    name: Literal["TrackAdditionalOutputsCallback"] = "TrackAdditionalOutputsCallback"
    keys: Strings | None = None
    patterns: Strings | None = None
    scalars: StrictBool = False
    reduce: Reductions | dict[StrictStr, Reductions] = "mean"
    weight: StrictStr | None = Field(default=None, min_length=1)
    replicated: Strings = Field(default=[])
    verbose: StrictBool = False
    log_output: StrictBool = True
    log_as: Template | None = None
    save_output: StrictBool = False
    missing: Literal["error", "warn", "skip"] = "error"
    nonfinite: Literal["propagate", "skip", "raise"] = "propagate"

    @field_validator("reduce")
    @classmethod
    def _names_a_reduction(cls, value: Any) -> Any:
        for wanted in value.values() if isinstance(value, dict) else [value]:
            if isinstance(wanted, list) and not wanted:
                raise ValueError("got an empty list of reductions; name at least one, or leave `reduce` out for mean")
            if isinstance(wanted, list) and len(set(wanted)) < len(wanted):
                raise ValueError(f"got {wanted}; name each reduction once")
        return value

    @field_validator("log_as")
    @classmethod
    def _is_a_template(cls, value: str | None) -> str | None:
        return None if value is None else checked_template(value)

    @model_validator(mode="after")
    def _tracks_something(self) -> Self:
        if not self.keys and not self.patterns and not self.scalars:
            raise ValueError(
                "keys and patterns are both empty; name at least one exact key or one substring pattern, or set scalars to true"
                " for every single number"
            )
        if "stack" in self.asked and not self.save_output:
            raise ValueError("reduce asks for stack, which is saved and never logged; set save_output to true")
        if self.log_as is not None:
            is_one = len({*(self.keys or ())}) == 1 and not self.patterns and not self.scalars
            refuse_one_name(self.log_as, tracked=self.tracked, is_one=is_one, reductions=self._most_logged)
        if not self.gives_something:
            warn(NOTHING_COMES_OUT)
        return self

    @property
    def tracked(self) -> str:
        """Return what is tracked, in words: `keys=['loss'], patterns=[]`."""
        scalars = ", scalars=True" if self.scalars else ""
        return f"keys={list(self.keys or [])}, patterns={list(self.patterns or [])}{scalars}"

    @property
    def _most_logged(self) -> tuple[Reduction, ...]:
        """Return the reductions that the key with the most of them can be logged by."""
        wanted = self.reduce.values() if isinstance(self.reduce, dict) else [self.reduce]
        of_each = [_logged(tuple(each) if isinstance(each, list) else (each,)) for each in wanted]
        return max(of_each, key=len, default=())

    @property
    def gives_something(self) -> bool:
        """Tell whether the values go anywhere: to the log, to a file or to `logging`."""
        return self.log_output or self.save_output or self.verbose

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

    def is_replicated(self, key: str) -> bool:
        """Tell whether every process computes the same value of a key, so that it counts once: an exact name or a pattern."""
        return any(name in key for name in self.replicated)

    @property
    def naming(self) -> Naming:
        """Return how what is logged is named: as `log_as` says, else as Noether does."""
        return naming_of(self.log_as or f"{self._named_by}/{{interval}}", str(self.interval))

    @property
    def _named_by(self) -> str:
        return "{key}" if self.reduce in ("mean", "last", ["mean"], ["last"]) else "{key}/{reduction}"

    def naming_in_evaluation(self, prefix: str) -> Naming:
        """Return how what an evaluation gives is named: `{prefix}/{key}`, and the reduction if training's names have it."""
        found = naming_of(f"{prefix}/{self._named_by}", "")
        return found.with_reduction() if "reduction" in self.naming.fields else found

    def log_key(self, key: str, reduction: Reduction) -> str:
        """Return the name under which a reduction of a key is logged."""
        return self.naming.name(key, reduction)

    def log_keys(self, key: str) -> list[tuple[str, Reduction]]:
        """Return the names under which a key is logged, each with its reduction."""
        if not self.log_output:
            return []
        naming = self.naming
        return [(naming.name(key, reduction), reduction) for reduction in _logged(self.reductions(key))]

    def tensor_name(self, key: str, reduction: Reduction) -> str:
        """Return the name under which a reduction of a key is saved: the raw key where it has only one."""
        return key if len(self.reductions(key)) == 1 else f"{key}/{reduction}"


def _logged(reductions: tuple[Reduction, ...]) -> tuple[Reduction, ...]:
    return tuple(each for each in reductions if each != "stack")


def fields_of(config: TrackAdditionalOutputsCallbackConfig) -> Fields:
    """Return what the sums must carry for all that a config asks for."""
    asked = config.asked
    return Fields(
        squares=bool(asked & {"std", "var"}), extremes=bool(asked & {"min", "max"}), weights=config.weight is not None
    )


def check_last(config: TrackAdditionalOutputsCallbackConfig, key: str, shape: tuple[int, ...]) -> None:
    """Raise `UpdateOutputError` if a key's `last` is to be logged and is no single number."""
    if config.log_output and "last" in config.reductions(key) and prod(shape) != 1:
        raise UpdateOutputError(
            f"update output {key!r} has shape {shape}, and the log takes only one number of a key reduced with"
            " `last`; reduce it with mean, or set log_output: false and save_output: true to save the array"
        )


_GATHER = (
    "gather it in the training step, in every process (a DTensor has .full_tensor(), a jax.Array is gathered by"
    " jax.experimental.multihost_utils.process_allgather)"
)


def check_spread(config: TrackAdditionalOutputsCallbackConfig, key: str, spread: Hashable) -> None:
    """Raise `UpdateOutputError` if a key's values are to be kept whole, or are said to be replicated, and are spread."""
    if spread and config.is_replicated(key):
        raise UpdateOutputError(
            f"update output {key!r} is {spread}, of which each process has a part, and the config's `replicated`"
            f" ({listing(config.replicated)}) says that every process has the same: it counts once by itself, so take it out of"
            " `replicated`"
        )
    kept = [name for name in config.reductions(key) if name in ("last", "stack")]
    if spread and kept:
        raise UpdateOutputError(
            f"update output {key!r} is {spread}, of which each process has a part, and `{kept[0]}` takes whole values;"
            f" {_GATHER}, or reduce it with another reduction"
        )


def check_weight(
    config: TrackAdditionalOutputsCallbackConfig, key: str, shape: tuple[int, ...], weight: tuple[int, ...]
) -> None:
    """Raise `UpdateOutputError` if a weight of one shape cannot weigh a value of another."""
    if prod(weight) != 1 and weight != shape:
        raise UpdateOutputError(
            f"update output {key!r} has shape {shape}, and its weight {config.weight!r} has shape {weight}; expected a"
            " weight with one element or of the value's shape: broadcast it in the training step"
        )


def check_weight_spread(
    config: TrackAdditionalOutputsCallbackConfig,
    key: str,
    spread: Hashable,
    weight: tuple[int, ...],
    weight_spread: Hashable,
) -> None:
    """Raise `UpdateOutputError` if a weight is not spread over processes as what it weighs is, and no process has it whole."""
    if weight_spread != spread and (weight_spread or prod(weight) != 1):
        raise UpdateOutputError(
            f"update output {key!r} is {spread or 'whole in each process'}, and its weight {config.weight!r} is"
            f" {weight_spread or f'whole, of shape {weight}'}; expected a weight of one element that each process has whole,"
            " or one that is spread over the processes as the value is"
        )
