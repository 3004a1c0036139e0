"""Put what runs were made of side by side: versions, configs, and where they ran."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from noether_core.config.yaml_file import parse_yaml
from noether_core.emit.reader import RunReader
from noether_core.errors import NoetherError
from noether_core.parity.divergence.result import Comparison
from noether_core.regular_files import read_regular
from noether_core.text import message

_MOST_ROWS = 1000  # of a table
_MOST_TEXT = 2000  # characters of a value
_MOST_CONFIG = 100_000  # bytes of a config that is shown
_MOST_DEPTH = 12

Row = tuple[str, str]


def tables(runs: Sequence[RunReader], comparison: Comparison | None) -> list[dict[str, Any]]:
    """Return tables of settings; each has a title, its columns' labels by place, and rows of a name and a value of each column.

    A value is None where a column lacks it.
    """
    found = []
    if comparison is not None and any(comparison.settings):
        found.append(_table("Settings", "compared", [list(_flat(each)) for each in comparison.settings]))
    if runs:
        found.append(_table("Environment", "runs", [list(_environment(run)) for run in runs]))
        configs = [_config(run) for run in runs]
        found.append(_table("Config", "runs", [rows for rows, _ in configs]))
        found[-1]["texts"] = [text for _, text in configs]
    return [table for table in found if table["rows"]]


def _table(title: str, columns: str, of_columns: Sequence[Sequence[Row]]) -> dict[str, Any]:
    values = [dict(rows) for rows in of_columns]
    names = list(dict.fromkeys(name for rows in of_columns for name, _ in rows))
    rows = [[name, *(each.get(name) for each in values)] for name in names[:_MOST_ROWS]]
    return {"title": title, "columns": columns, "rows": rows, "left_out": max(0, len(names) - _MOST_ROWS)}


def _environment(run: RunReader) -> Iterator[Row]:
    record = run.starts[-1].record if run.starts else {}
    versions, arithmetic = record.get("versions"), record.get("arithmetic")
    yield from (
        (message(name, 200), message(version, 200))
        for name, version in [
            ("python", record.get("python")),
            *(sorted(versions.items()) if isinstance(versions, Mapping) else ()),
            *(sorted(arithmetic.items()) if isinstance(arithmetic, Mapping) else ()),
            ("processes", record.get("processes")),
            ("host", record.get("host")),
        ]
        if version is not None
    )
    yield "starts", str(len(run.starts))
    if len(run.table.iterations):
        for unit, count in zip(("epochs", "updates", "samples"), run.table.iterations[-1].tolist(), strict=True):
            if count:
                yield unit, f"{count:,}"


def _config(run: RunReader) -> tuple[list[Row], str]:
    """Return a run's config as rows and as text; of one that cannot be read, a sentence."""
    path = run.path / "config.yaml"
    try:
        text = read_regular(path, _MOST_CONFIG, run.path).decode("utf-8")
    except FileNotFoundError:
        return [], ""
    except (OSError, NoetherError, UnicodeDecodeError) as error:
        return [], message(f"(config.yaml cannot be read: {error})", _MOST_TEXT)
    shown = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    try:
        return list(_flat(parse_yaml(text, str(path)))), message(shown, _MOST_CONFIG)
    except (NoetherError, ValidationError):
        return [], message(shown, _MOST_CONFIG)


def _flat(value: Any, name: str = "", depth: int = 0) -> Iterator[Row]:
    """Yield the leaves of nested dicts and lists by their dotted names; a list of plain values is a leaf."""
    is_plain = not isinstance(value, list | tuple) or not any(isinstance(each, Mapping | list) for each in value)
    if isinstance(value, Mapping) and value and depth < _MOST_DEPTH:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key), depth + 1)
    elif not is_plain and depth < _MOST_DEPTH:
        for place, each in enumerate(value):
            yield from _flat(each, f"{name}.{_titled(each, place)}" if name else str(place), depth + 1)
    else:
        yield message(name or "value", 500), message(_plain(value), _MOST_TEXT)


def _titled(value: Any, place: int) -> str:
    kind = value.get("kind") if isinstance(value, Mapping) else None
    return f"{place}:{kind.rpartition('.')[2]}" if isinstance(kind, str) else str(place)


def _plain(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):
        return str(value)
