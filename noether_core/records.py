"""Read records: what has named fields, such as a dict, a NamedTuple or a dataclass."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

_Items = Callable[[Any], Iterable[tuple[Any, Any]]]


def items_of(value: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return the names and values of a record, and None for what is none.

    Records are mappings, NamedTuples and other tuples with named places (`torch.return_types`), dataclasses (of flax and chex
    too), classes of attrs and pydantic, and `SimpleNamespace`. A field that is not set is left out.

    >>> from collections import namedtuple
    >>> dict(items_of(namedtuple("Outputs", "loss accuracy")(0.5, 0.9)))
    {'loss': 0.5, 'accuracy': 0.9}
    >>> items_of((0.5, 0.9)) is None
    True
    """
    kind: Any = type(value)
    items = _reader(kind)
    return None if items is None else items(value)


def is_record_type(kind: Any) -> bool:
    """Tell whether values of a type are records."""
    return _reader(kind) is not None


def is_box_type(kind: type) -> bool:
    """Tell whether values of a type hold an array and stand for it, as Flax's `nnx.Variable` does."""
    return hasattr(kind, "__jax_array__") and hasattr(kind, "get_value")


@lru_cache(maxsize=1024)
def _reader(kind: Any) -> _Items | None:
    if issubclass(kind, Mapping):
        return lambda value: value.items()
    if issubclass(kind, SimpleNamespace):
        return lambda value: vars(value).items()
    names = _field_names(kind)
    return None if names is None else partial(_set_fields, names)


def _set_fields(names: tuple[str, ...], value: Any) -> list[tuple[str, Any]]:
    return [(name, getattr(value, name)) for name in names if hasattr(value, name)]


def _field_names(kind: type) -> tuple[str, ...] | None:
    if issubclass(kind, tuple):
        is_of_c = hasattr(kind, "n_sequence_fields")
        fields: Iterable[str] | None = getattr(kind, "__match_args__" if is_of_c else "_fields", None)
    elif dataclasses.is_dataclass(kind):
        fields = [field.name for field in dataclasses.fields(kind)]
    elif hasattr(kind, "__attrs_attrs__"):
        fields = [attribute.name for attribute in kind.__attrs_attrs__]
    else:
        fields = getattr(kind, "__pydantic_fields__", None)
    return None if fields is None else tuple(fields)
