"""Write entries as a table: a row an entry; columns `epoch`, `update`, `sample`, then the keys in the order first logged."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from noether_core.emit.columns import Table
from noether_core.errors import MissingDependencyError
from noether_core.schedule import UNITS
from noether_core.text import as_float


def csv_parts(table: Table) -> Iterator[bytes]:
    """Yield, line by line, the entries as CSV (RFC 4180) in UTF-8.

    A float is written as its shortest decimal that reads back to the same bits (`nan`, `inf` and `-inf` among them), a list or
    dict as JSON, text as it is. A key that an update did not log leaves its cell empty.
    """
    columns = [*UNITS, *table.series]
    writer = csv.writer(_Lines())
    yield writer.writerow(columns)
    for entry in table.iter_entries():
        yield writer.writerow([_cell(entry[key]) if key in entry else "" for key in columns])


class _Lines:
    """Hand each line back through `writerow`, which returns what `write` does."""

    def write(self, line: str) -> bytes:
        return _utf8(line)


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
    try:
        import pyarrow as pa  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependencyError(
            "the Parquet export needs pyarrow: pip install 'noether-callbacks[parquet]'"
        ) from error
    columns: dict[str, Any] = {unit: pa.array(table.iterations[:, at]) for at, unit in enumerate(UNITS)}
    for key, series in table.series.items():
        columns[_utf8(key).decode()] = _column(pa, series.value, table.rows[key], len(table.iterations))
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
    return [None if value is None else _utf8(_cell(value)).decode() for value in values], pa.string()


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
