"""Name what is logged by a template, such as `{key}/{interval}`: Noether's, or one of the user's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from string import Formatter
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictStr

from noether_core.errors import listing, suggest

_FIELDS = ("key", "reduction", "interval")
_MOST = 1000  # characters of a template


def _is_no_mapping(value: Any) -> Any:
    if isinstance(value, dict):  # YAML's `log_as: {key}`
        raise ValueError('got a mapping; in YAML a template that begins with a brace is quoted: log_as: "{key}"')
    return value


Template = Annotated[StrictStr, Field(min_length=1), BeforeValidator(_is_no_mapping)]


@dataclass(frozen=True)
class Naming:
    """Make the names of what one config logs.

    Attributes:
        parts: of the template: some text, and the field after it or an empty string.
        interval: what `{interval}` stands for.

    >>> naming = naming_of("train/{key}", "U10")
    >>> naming.name("loss", "mean"), naming.nonfinite("loss")
    ('train/loss', 'train/loss/nonfinite')
    """

    parts: tuple[tuple[str, str], ...]
    interval: str

    @property
    def fields(self) -> tuple[str, ...]:
        """Return the fields that the template has."""
        return tuple(field for _, field in self.parts if field)

    def name(self, key: str, reduction: str) -> str:
        """Return what a reduction of a key is logged under."""
        values = {"key": key, "reduction": reduction, "interval": self.interval, "": ""}
        return "".join([text + values[field] for text, field in self.parts])

    def with_reduction(self) -> Naming:
        """Return a naming that tells the reductions of a key apart: `/{reduction}` follows the key, unless it is somewhere."""
        if "reduction" in self.fields:
            return self
        at = max((at for at, (_, field) in enumerate(self.parts) if field == "key"), default=len(self.parts) - 1) + 1
        return replace(self, parts=(*self.parts[:at], ("/", "reduction"), *self.parts[at:]))

    def nonfinite(self, key: str, times: int = 1) -> str:
        """Return what is logged under how many values of a key were not finite; `times` sets it apart from others' names."""
        return self.with_reduction().name(key, "/".join(["nonfinite"] * times))

    @property
    def template(self) -> str:
        """Return the template."""
        escaped = [(text.replace("{", "{{").replace("}", "}}"), field) for text, field in self.parts]
        return "".join([text + (field and f"{{{field}}}") for text, field in escaped])


@lru_cache(maxsize=1024)
def naming_of(template: str, interval: str) -> Naming:
    """Return the naming by a template that `checked_template` has taken."""
    return Naming(tuple((text, field or "") for text, field, _, _ in Formatter().parse(template)), interval)


def checked_template(template: str, fields: tuple[str, ...] = _FIELDS) -> str:
    """Return a template that names can be made by.

    Raises:
        ValueError: if it cannot be read, or has what is none of these fields, a field twice, or a field with an attribute, an
            index, a conversion or a format.
    """
    known = ", ".join(f"{{{field}}}" for field in fields)
    if len(template) > _MOST:
        raise ValueError(f"has {len(template)} characters; expected at most {_MOST}: shorten it")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise ValueError(
            f"got {template!r}, which cannot be read ({error}); write a field as {{key}}, and a brace itself twice"
        ) from None
    seen: set[str] = set()
    for _, field, form, conversion in parts:
        if field is None:
            continue
        name = next((each for each in fields if field.startswith((f"{each}.", f"{each}["))), field)
        if name not in fields:
            raise ValueError(f"got {template!r}; {{{field}}} is none of its fields: {known}.{suggest(field, fields)}")
        if name != field or form or conversion:
            raise ValueError(
                f"got {template!r}; a field is put in as it is, without an attribute, an index, a conversion or a format: write"
                f" {{{name}}}"
            )
        if name in seen:
            raise ValueError(f"got {template!r}; it has {{{name}}} twice: keep one")
        seen.add(name)
    return template


def refuse_one_name(template: str, *, tracked: str, is_one: bool, reductions: tuple[str, ...]) -> None:
    """Raise `ValueError` if a template would give several values one name.

    Args:
        template: one that `checked_template` has taken.
        tracked: says which outputs there may be.
        is_one: whether that is one.
        reductions: those that one key has.
    """
    naming = naming_of(template, "")
    if "key" not in naming.fields and not is_one:
        better = naming_of(f"{naming.template}/{{key}}", "").template
        raise ValueError(
            f"log_as {template!r} has no {{key}}, and the callback may log several outputs ({tracked}), which would have one"
            f" name; write log_as: {better!r}"
        )
    if len(reductions) > 1 and "reduction" not in naming.fields:
        raise ValueError(
            f"log_as {template!r} has no {{reduction}}, and reduce asks for {listing(reductions)}, which would have one name;"
            f" write log_as: {naming.with_reduction().template!r}"
        )
