"""Write entries as a table: a row an entry; columns `epoch`, `update`, `sample`, then the keys in the order first logged."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from noether_core.dependencies import needing
from noether_core.emit.columns import Table
from noether_core.schedule import UNITS
from noether_core.text import as_float, as_utf8

_FORMULAS = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "＝", "＋", "－", "＠")
# before what others than ours may take for the beginning of a cell
_SPLIT_OFF = re.compile(r"(?<=[;\t|])(?=[=+\-@＝＋－＠])")
_PLAIN_NAME = re.compile(r"[\w/.-]+")  # that no reader splits, wherever it does


def csv_parts(table: Table) -> Iterator[bytes]:
    """Yield, line by line, the entries as CSV (RFC 4180) in UTF-8.

    A number is bare: a float as its shortest decimal that reads back to the same bits (`nan`, `inf` and `-inf` among them).
    Text is in quotes, and so are a list or dict, as JSON. A key that an update did not log leaves its cell empty. Text and keys
    that a spreadsheet would take for a formula, those that begin with `=`, `+`, `-`, `@`, a tab or a line's end, have an
    apostrophe before them, and so have those that begin with one: take it away, and the text is what was logged. One is also
    before such a sign that follows a semicolon, a tab or a bar, for readers that split there.
    """
    columns = [*UNITS, *table.series]
    yield _line([_name(column) for column in columns])
    for entry in table.iter_entries():
        yield _line([_csv_cell(entry[key]) if key in entry else "" for key in columns])


def _line(cells: Sequence[str]) -> bytes:
    return as_utf8(",".join(cells) + "\r\n")


def _name(key: str) -> str:
    return _harmless(key) if _PLAIN_NAME.fullmatch(key) else _quoted(key)


def _csv_cell(value: Any) -> str:
    return _cell(value) if isinstance(value, int | float) else _quoted(_cell(value))


def _quoted(text: str) -> str:
    return '"' + _harmless(text).replace('"', '""') + '"'


def _harmless(text: str) -> str:
    text = _SPLIT_OFF.sub("'", text)
    return "'" + text if text.startswith(_FORMULAS) else text


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return repr(value) if isinstance(value, int | float) else json.dumps(value, ensure_ascii=False)


def parquet_bytes(table: Table) -> bytes:
    """Return the entries as a Parquet file, its missing cells null.

    A column is bool, int64 or float64 where each of its values is one exactly (an int beside floats, say); otherwise it is
    text, as in the CSV: never a rounded number.

    Raises:
        MissingDependencyError: if pyarrow is not installed.
    """
    with needing("the Parquet export", "pyarrow"):
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import parquet
    columns: dict[str, Any] = {unit: pa.array(table.iterations[:, at]) for at, unit in enumerate(UNITS)}
    for key, series in table.series.items():
        columns[as_utf8(key).decode()] = _column(pa, series.value, table.rows[key], len(table.iterations))
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _column(pa: Any, values: np.ndarray[Any, Any], rows: np.ndarray[Any, Any], length: int) -> Any:
    """Return an array of so many rows, null where there is no value."""
    is_missing = np.ones(length, bool)
    is_missing[rows] = False
    column = np.full(length, None if values.dtype == object else 0, values.dtype)
    column[rows] = values
    if values.dtype != object:
        return pa.array(column, mask=is_missing)
    return pa.array(*_typed(pa, column.tolist()))


def _typed(pa: Any, values: list[Any]) -> tuple[list[Any], Any]:
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present):
        return values, pa.bool_()
    if all(type(value) is int and -(2**63) <= value < 2**63 for value in present):
        return values, pa.int64()
    if all(isinstance(value, float) or (isinstance(value, int) and as_float(value) == value) for value in present):
        return [None if value is None else float(value) for value in values], pa.float64()
    return [None if value is None else as_utf8(_cell(value)).decode() for value in values], pa.string()
