"""The columns of a run are what its lines say: held to a plain list of dicts, merged and superseded the slow way."""

from __future__ import annotations

import math
import sys
import tracemalloc
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from noether_core import LogWriter, MissingDependencyError, UpdateCounter, read_run
from noether_core.emit.columns import Point, Table, TableBuilder
from noether_core.emit.starts import Start

Entry = dict[str, Any]
UNITS = ("epoch", "update", "sample")


def reference(starts: Sequence[Sequence[Entry]]) -> tuple[list[Entry], int]:
    """Return the entries that count, and how many do not."""
    entries: list[Entry] = []
    superseded = 0
    for start in starts:
        merged: list[Entry] = []
        for entry in start:
            if merged and merged[-1]["update"] == entry["update"]:
                merged[-1].update(entry)
            else:
                merged.append(dict(entry))
        if merged:
            kept = [entry for entry in entries if entry["update"] < merged[0]["update"]]
            superseded += len(entries) - len(kept)
            entries = kept + merged
    return entries, superseded


def built(starts: Sequence[Sequence[Entry]]) -> tuple[Table, int]:
    builder = TableBuilder()
    for start in starts:
        builder.add_start(start)
    return builder.build()


def check(starts: Sequence[Sequence[Entry]]) -> Table:
    table, superseded = built(starts)
    entries, wanted_superseded = reference(starts)
    assert repr(list(table.iter_entries())) == repr(entries)  # types, order and every digit
    assert superseded == wanted_superseded
    series: dict[str, list[Point]] = {}
    for entry in entries:
        for key, value in entry.items():
            if key not in UNITS:
                series.setdefault(key, []).append(Point(*(entry[unit] for unit in UNITS), value))
    assert list(table.series) == list(table.rows) == list(series)
    for key, points in series.items():
        found = table.series[key]
        assert (found.key, len(found)) == (key, len(points))
        assert repr(list(found)) == repr(points)
        assert table.rows[key].tolist() == [row for row, entry in enumerate(entries) if key in entry]
        kinds = {type(point.value) for point in points}
        kind = {float: "f", int: "i", bool: "b"}.get(kinds.pop(), "O") if len(kinds) == 1 else "O"
        is_wide = any(type(point.value) is int and not -(2**63) <= point.value < 2**63 for point in points)
        assert found.value.dtype.kind == ("O" if is_wide else kind)
        assert {each.dtype for each in (found.epoch, found.update, found.sample)} == {np.dtype(np.int64)}
        for each in (found.epoch, found.update, found.sample, found.value):
            assert not each.flags.writeable
    return table


VALUES = (
    st.floats()
    | st.integers(-3, 3)
    | st.booleans()
    | st.sampled_from([2**70, "text", None, [1, 2], [3, math.nan], {"a": 1}])
)
ENTRIES = st.builds(
    lambda update, epoch, values: {"epoch": epoch, "update": update, "sample": 2 * update, **values},
    st.integers(0, 6),
    st.integers(0, 1),
    st.dictionaries(st.sampled_from("abcd"), VALUES | st.just(0.5), max_size=4),
)


@given(st.lists(st.lists(ENTRIES, max_size=8).map(lambda start: sorted(start, key=itemgetter("update"))), max_size=4))
def test_columns_are_what_the_entries_say(starts: list[list[Entry]]) -> None:
    check(starts)


@st.composite
def descents(draw: st.DrawFn) -> list[tuple[list[Entry], Start | None, dict[int, float]]]:
    """Draw process starts, each of which goes on from another one's update, from the beginning, or says nothing."""
    starts: list[tuple[list[Entry], Start | None, dict[int, float]]] = []
    for number in range(draw(st.integers(1, 5))):
        update = draw(st.none() | st.integers(0, 8))
        names = st.sampled_from(["", "gone", *map(str, range(number))])
        others = draw(st.lists(st.tuples(names, st.integers(0, 8)), max_size=2))
        ancestors = () if update is None else ((draw(names), update), *others)
        start = draw(st.none() | st.just(Start(str(number), ancestors, -1)))
        updates = sorted(draw(st.lists(st.integers(update or 0, 9), max_size=6)))
        entries = [draw(ENTRIES) | {"update": each, "sample": each} for each in updates]
        starts.append((entries, start, {each: number + each / 100 for each in updates}))
    return starts


def descended(starts: Sequence[tuple[list[Entry], Start | None, dict[int, float]]], at: int) -> list[Entry]:
    """Return what stands where the start at this place is the newest, each entry with its time."""
    if at < 0:
        return []
    entries, start, times = starts[at]
    before = [each for _, each, _ in starts[:at]]
    ids = ["" if each is None else each.id for each in before]
    ancestors = start.ancestors if start else [("", entries[0]["update"] - 1 if entries else 99)]
    most, parent = 99, -1
    for name, until in ancestors:
        most = min(most, until)
        if not name:
            parent = at - 1
        elif name in ids:
            parent = ids.index(name)
        elif None in before:  # its record may be lost
            parent = max(place for place, each in enumerate(before) if each is None)
        if parent >= 0:
            break
    standing = [each for each in descended(starts, parent) if each["update"] <= most]
    for each in entries:
        each = {**each, "time": times[each["update"]]}
        if standing and standing[-1]["update"] == each["update"]:
            standing[-1].update(each)
        else:
            standing.append(each)
    return standing


@given(descents())
def test_of_several_starts_the_newest_line_of_descent_stands(
    starts: list[tuple[list[Entry], Start | None, dict[int, float]]],
) -> None:
    builder = TableBuilder()
    for start in starts:
        builder.add_start(*start)
    while starts and not starts[-1][0]:  # a start that wrote nothing supersedes nothing
        starts.pop()
    table, _ = builder.build()
    found = [{**each, "time": time} for each, time in zip(table.iter_entries(), table.times.tolist(), strict=True)]
    wanted = descended(starts, len(starts) - 1)
    assert repr([{name: each[name] for name in sorted(each)} for each in found]) == repr(
        [{name: each[name] for name in sorted(each)} for each in wanted]
    )
    for key, series in table.series.items():
        assert list(
            zip(series.update.tolist(), map(repr, series.value.tolist()), series.time.tolist(), strict=True)
        ) == [(each["update"], repr(each[key]), each["time"]) for each in wanted if key in each]


def entry(update: int, **values: Any) -> Entry:
    return {"epoch": update // 100, "update": update, "sample": 8 * update, **values}


def test_keys_that_come_and_go_over_many_batches() -> None:
    def keys(update: int) -> Entry:
        found = {f"every {n}": update / n for n in (7, 1, 2, 300) if update % n == 0}
        return dict(sorted(found.items(), reverse=update % 5 == 0))

    first = [part for update in range(1, 900) for part in (entry(update, **keys(update)), entry(update, late=update))]
    second = [entry(update, **keys(update), new=update % 2 == 0) for update in range(700, 1500)]
    table = check([first, [], second])
    assert table.series["new"].value.dtype == bool
    assert len(table.series["late"]) == 699


def test_a_column_whose_odd_values_were_superseded_is_one_of_numbers() -> None:
    table = check([[entry(1, v=1.5), entry(2, v="odd"), entry(3, v=2**80)], [entry(2, v=2.5)]])
    assert table.series["v"].value.tolist() == [1.5, 2.5]
    assert table.series["v"].value.dtype == np.float64


def test_a_place_has_its_point() -> None:
    series = check([[entry(1, v=1), entry(2, v=2**80), entry(300, v="odd")]]).series["v"]
    assert [series[at] for at in range(3)] == [*series]
    assert series[-1] == series[np.int64(2)] == Point(3, 300, 2400, "odd")
    for at, error in ((3, IndexError), (-4, IndexError), (slice(1), TypeError), ("v", TypeError)):
        with pytest.raises(error):
            series[at]  # type: ignore[index]


def test_columns_of_keys_that_are_logged_together_share_their_places() -> None:
    table = check([[entry(update, a=1.0, b=2) for update in range(1000)]])
    assert np.shares_memory(table.series["a"].update, table.series["b"].update)


def write(path: Path, entries: Sequence[Entry]) -> None:
    counter = UpdateCounter()
    writer = LogWriter(path, update_counter=counter)
    for values in entries:
        counter.next_update()
        for key, value in values.items():
            writer.add_nonscalar(key, value)
        writer.flush()
    writer.close()


def test_reading_holds_columns_and_a_batch_of_lines(tmp_path: Path) -> None:
    counter = UpdateCounter()
    writer = LogWriter(tmp_path, update_counter=counter)
    for update in range(4000):
        counter.next_update()
        writer.add_scalars({f"key{at}": update / (at + 3) for at in range(50)})
        writer.flush()
    writer.close()
    tracemalloc.start()
    try:
        run = read_run(tmp_path)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    values = sum(map(len, run.series.values()))
    assert values == 200_000
    assert held < 10 * values
    assert peak < 30 * values  # as dicts of Python numbers they take 70 bytes each


def test_a_pandas_frame_rounds_nothing(tmp_path: Path) -> None:
    wide = 2**53 + 1
    write(
        tmp_path,
        [{"loss": 0.1, "n": wide, "on": True}, {"n": 3, "text": "a"}, {"loss": math.inf, "on": False, "all": 1}],
    )
    frame = read_run(tmp_path).to_pandas()
    assert list(frame) == ["epoch", "update", "sample", "loss", "n", "on", "text", "all"]
    assert frame["update"].tolist() == [1, 2, 3]
    assert frame["loss"].dtype == np.float64
    assert frame["loss"].tolist()[::2] == [0.1, math.inf]
    assert frame["loss"].isna().tolist() == [False, True, False]
    assert frame["n"].dropna().tolist() == [wide, 3]
    assert (str(frame["n"].dtype), str(frame["on"].dtype)) == ("Int64", "boolean")
    assert frame["on"].tolist() == [True, pd.NA, False]
    assert frame["text"].isna().tolist() == [True, False, True]
    assert str(frame["all"].dtype) == "Int64"
    write(tmp_path / "every", [{"n": wide}, {"n": 3}])
    assert read_run(tmp_path / "every").to_pandas()["n"].dtype == np.int64
    (tmp_path / "bare" / "metrics").mkdir(parents=True)
    assert len(read_run(tmp_path / "bare").to_pandas()) == 0


def test_without_pandas_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [{"loss": 0.1}])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingDependencyError, match=r"pip install '\.\[pandas\]'"):
        read_run(tmp_path).to_pandas()
