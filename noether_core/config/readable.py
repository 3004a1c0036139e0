"""Say what is wrong with a config in the form of all messages here: what arrived, what was expected, what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from noether_core.errors import listing, suggest
from noether_core.text import inert, message

_MOST = 120  # characters of a value that a message shows
_MOST_LINES, _MOST_MESSAGE = 20, 2000  # lines of an error, and characters of one


def readable(error: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> ValidationError:
    """Return a validation error that says each problem once, with the closest field name or value.

    Args:
        error: what pydantic raised: of a field that takes several kinds of value, a line for each kind.
        model: the config's class.
        data: what it was made of.
    """
    lines: list[InitErrorDetails] = []
    for _, group in groupby(error.errors(include_url=False), key=lambda found: found["loc"][:1]):
        found = list(group)
        fitting = [each for each in found if _fits(each["loc"], data)]
        lines += [_line(each, found, model) for each in (fitting or found[:1])[: _MOST_LINES + 1]]
        if len(lines) > _MOST_LINES:
            lines[_MOST_LINES:] = [InitErrorDetails(type=_custom("there is more that is wrong"), loc=(), input=None)]
            break
    return ValidationError.from_exception_data(error.title, lines, hide_input=True)


def entitled(error: ValidationError, title: str) -> ValidationError:
    """Return a readable error that says where the config stands."""
    lines = [InitErrorDetails(type=_custom(each["msg"]), loc=each["loc"], input=None) for each in error.errors()]
    return ValidationError.from_exception_data(message(title), lines, hide_input=True)


def _custom(text: str) -> PydanticCustomError:
    return PydanticCustomError("noether_config", "{message}", {"message": message(text, _MOST_MESSAGE)})


def _is_kind(part: int | str) -> bool:
    """Tell whether a part of a place is pydantic's name for a kind of value, such as `list[literal['mean']]`."""
    return isinstance(part, str) and "[" in part


def _fits(place: tuple[int | str, ...], value: Any) -> bool:
    """Tell whether every kind of value that a place names is what is there."""
    for part in place:
        if _is_kind(part):
            kind = "dict" if isinstance(value, dict) else "list" if isinstance(value, list) else "literal"
            if not str(part).startswith(kind):
                return False
        elif isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
    return True


def _line(error: ErrorDetails, group: Sequence[ErrorDetails], model: type[BaseModel]) -> InitErrorDetails:
    parts = (part for part in error["loc"] if not _is_kind(part))
    place = tuple(inert(part)[:_MOST] if isinstance(part, str) else part for part in parts)
    depth = next((at for at, part in enumerate(error["loc"]) if _is_kind(part) and at + 1 == len(error["loc"])), None)
    kinds = {str(each["loc"][depth]).partition("[")[0] for each in group if depth and len(each["loc"]) > depth}
    also = (
        ", a list of these, or a dict from a key or pattern to these" if "dict" in kinds else ", or a list of these"
    ) * ("list" in kinds)
    return InitErrorDetails(type=_custom(_message(error, model, also)), loc=place, input=error["input"])


def _message(error: ErrorDetails, model: type[BaseModel], also: str) -> str:
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    got = f"got {value!r:.{_MOST}}"
    if kind == "extra_forbidden":
        name, fields = str(error["loc"][-1]), list(model.model_fields)
        return f"{name!r:.{_MOST}} is no field of {model.__name__}; its fields are {listing(fields)}.{suggest(name, fields)}"
    if kind == "missing":
        return "it is missing, and has no default; give it"
    if kind == "literal_error":
        expected = str(context["expected"])
        options = expected.replace(" or ", ", ").replace("'", "").split(", ")
        return f"{got}; expected {expected}{also}.{suggest(value, options) if isinstance(value, str) else ''}"
    if kind == "greater_than_equal":
        return f"{got}; expected at least {context['ge']}"
    if kind == "less_than_equal":
        return f"{got}; expected at most {context['le']}"
    if kind == "value_error":  # a validator of ours has said it
        return str(context["error"])
    expected = re.sub(r"^.*? should (be |have )?", "", error["msg"])
    return f"{got} ({type(value).__name__}); expected {expected}"
