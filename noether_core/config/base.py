"""Define what every callback's config has: where it comes from, its id, its interval. Frozen; unknown fields are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from noether_core.config.readable import readable
from noether_core.schedule import UNITS, Interval
from noether_core.text import inert

NOETHER_KINDS = "noether.core.callbacks."


def _is_a_list(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"got the string {value!r:.200}; write a list: [{inert(value[:200])}]")
    return value


PositiveInt = Annotated[int, Field(strict=True, ge=1, le=2**63 - 1)]
_NEVER_IN_AN_ID = {*'/\\<>:"|?*', *map(chr, range(32)), *map(chr, range(127, 160))}
MOST_ID = 255  # bytes of a file's name
Strings = Annotated[list[StrictStr], BeforeValidator(_is_a_list)]


class CallbackBaseConfig(BaseModel):
    """Hold what every callback's config has. Frozen; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    kind: StrictStr | None = Field(default=None, min_length=1)
    id: StrictStr | None = Field(default=None, min_length=1)

    if not TYPE_CHECKING:  # type checkers see the fields

        def __init__(self, /, **fields: Any) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise readable(error, type(self), fields) from None

    @field_validator("id")
    @classmethod
    def _id_names_a_folder(cls, value: str | None) -> str | None:
        if value is not None and (value in {".", ".."} or set(value) & _NEVER_IN_AN_ID):
            raise ValueError(
                f"id {value!r:.200} names a folder and a checkpoint entry; use letters, digits, '-', '_' and '.'"
            )
        if value is not None and len(value.encode("utf-8")) > MOST_ID:
            raise ValueError(f"id {value!r:.40}... names a folder, and has more than {MOST_ID} bytes; shorten it")
        return value


class PeriodicCallbackConfig(CallbackBaseConfig):
    """Add the interval: exactly one of the three `every_n_*` fields."""

    every_n_epochs: PositiveInt | None = None
    every_n_updates: PositiveInt | None = None
    every_n_samples: PositiveInt | None = None
    batch_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _one_interval(self) -> Self:
        given = list(self._intervals())
        if len(given) != 1:
            arrived = ", ".join(interval.verbose for interval in given) or "no interval"
            raise ValueError(
                f"got {arrived}; set exactly one of every_n_epochs, every_n_updates and every_n_samples"
                " (for two intervals, write two callbacks)"
            )
        return self

    def _intervals(self) -> Iterator[Interval]:
        fields = ((unit, getattr(self, f"every_n_{unit}s")) for unit in UNITS)
        return (Interval(unit, n) for unit, n in fields if n is not None)

    @property
    def interval(self) -> Interval:
        """Return the one interval that is set."""
        return next(self._intervals())


class NamedCallbackConfig(PeriodicCallbackConfig):
    """Add the name of the class to build, which is what `kind` says where it is given."""

    name: str

    @model_validator(mode="after")
    def _kind_is_the_name(self) -> Self:
        if self.kind is not None and self.kind.removeprefix(NOETHER_KINDS) != self.name:
            raise ValueError(
                f"kind {self.kind!r} is not {self.name}; use {NOETHER_KINDS + self.name!r}, {self.name!r}, or leave it out"
            )
        return self
