"""Read an example of update outputs, for `noether-parity explain`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from noether_core.config.yaml_file import parse_yaml
from noether_core.emit.arrays import read_headers
from noether_core.errors import ConfigFileError, UpdateOutputError
from noether_core.regular_files import read_regular
from noether_core.select import flatten

_MOST_BYTES = 2**26  # of an example's file
_MOST_DIMENSIONS = 64  # of an array


def read_outputs(path: Path) -> dict[str, tuple[int, ...]]:
    """Read an example of update outputs: key to shape.

    A `.safetensors` file holds arrays. A JSON or YAML file holds a dict, nested ones allowed, of numbers, of nested lists
    of numbers, or of `{shape: [3, 4]}`.

    Raises:
        UpdateOutputError: if the file holds none of these.
    """
    try:
        if path.suffix == ".safetensors":
            return {key: header.shape for key, header in read_headers(path).items()}
        text = read_regular(path, _MOST_BYTES).decode("utf-8")
        document = json.loads(text) if path.suffix == ".json" else parse_yaml(text, "it")
        if not isinstance(document, Mapping):
            raise UpdateOutputError(
                f"{str(path)!r} holds {type(document).__name__}; expected a dict from names to numbers, lists or"
                " {shape: [...]}"
            )
        return dict(flatten(_shapes(document, "")))
    except UpdateOutputError:
        raise
    except RecursionError:
        raise UpdateOutputError(f"{str(path)!r} is nested too deep to read; give arrays as {{shape: [...]}}") from None
    except (OSError, ValueError, ConfigFileError) as error:
        raise UpdateOutputError(f"cannot read update outputs from {str(path)!r}: {error}") from error


def _shapes(outputs: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    shapes: dict[str, Any] = {}
    for name, value in outputs.items():
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            shapes[name] = None if value is None else _shape(key, value)
        elif isinstance(value.get("shape"), list | str) and value.keys() <= {"shape", "dtype"}:
            shapes[name] = _declared_shape(key, value["shape"])
        else:
            shapes[name] = _shapes(value, key + "/")
    return shapes


def _declared_shape(key: str, dims: list[Any] | str) -> tuple[int, ...]:
    if isinstance(dims, str) or not _is_shape(dims):
        raise UpdateOutputError(
            f"update output {key!r} has the shape {dims!r:.200}; expected a list of ints of at least 0, such as [3, 4]"
        )
    return tuple(dims)


def _is_shape(dims: list[Any]) -> bool:
    return len(dims) <= _MOST_DIMENSIONS and all(type(dim) is int and 0 <= dim < 2**63 for dim in dims)


def _shape(key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, list):
        inner = {_shape(key, item) for item in value}
        if len(inner) > 1:
            raise UpdateOutputError(
                f"update output {key!r} is a ragged list; make its rows equally long, or give {{shape: [...]}}"
            )
        return (len(value), *(inner.pop() if inner else ()))
    if isinstance(value, bool | int | float):
        return ()
    raise UpdateOutputError(
        f"update output {key!r} is {type(value).__name__} {value!r:.200}; expected a number, a list or {{shape: [...]}}"
    )
