"""Write entries as a table: a row an update; columns `epoch`, `update`, `sample`, then the keys in the order first logged."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from noether_core.emit.trackers.values import as_float, is_number
from noether_core.errors import MissingDependencyError
from noether_core.schedule import UNITS


def _columns(entries: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys([*UNITS, *(key for entry in entries for key in entry)]))


def csv_bytes(entries: Sequence[dict[str, Any]]) -> bytes:
    r"""Return the entries as CSV (RFC 4180) in UTF-8.

    A float is written as its shortest decimal that reads back to the same bits (`nan`, `inf` and `-inf` among them), a list or
    dict as JSON, text as it is. A key that an update did not log leaves its cell empty.

    >>> csv_bytes([{"epoch": 0, "update": 1, "sample": 8, "loss/U1": 0.1}, {"epoch": 0, "update": 2, "sample": 16, "n": 3}])
    b'epoch,update,sample,loss/U1,n\r\n0,1,8,0.1,\r\n0,2,16,,3\r\n'
    """
    columns = _columns(entries)
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(entry[key]) if key in entry else "" for key in columns] for entry in entries)
    return text.getvalue().encode("utf-8", "backslashreplace")


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return repr(value) if is_number(value) else json.dumps(value, ensure_ascii=False)


def parquet_bytes(entries: Sequence[dict[str, Any]]) -> bytes:
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
    columns = {key: [entry.get(key) for entry in entries] for key in _columns(entries)}
    table = pa.table({_utf8(key): pa.array(*_typed(pa, values)) for key, values in columns.items()})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def _typed(pa: Any, values: list[Any]) -> tuple[list[Any], Any]:
    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present):
        return values, pa.bool_()
    if all(type(value) is int and -(2**63) <= value < 2**63 for value in present):
        return values, pa.int64()
    if all(is_number(value) and (isinstance(value, float) or as_float(value) == value) for value in present):
        return [None if value is None else float(value) for value in values], pa.float64()
    return [None if value is None else _utf8(_cell(value)) for value in values], pa.string()


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
