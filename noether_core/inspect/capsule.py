"""Show a capsule: what ended a run, and the newest values of each key; the first that is not finite is marked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from noether_core.emit.capsule import Capsule, Step, Values
from noether_core.text import as_float, inert, message, number, sparkline

STEPS = 8  # that are shown
_AFTER = 2  # so many of them after the first value that is not finite
_MOST_ROWS = 200
_MOST_CELL = 24  # characters
_ODD = ("nan", "inf", "-inf")


def show_capsule(capsule: Capsule, steps: int = STEPS) -> RenderableType:
    """Return what `noether-parity show CAPSULE` prints, with so many of the steps."""
    parts: list[RenderableType] = [Text(line, style=style) for line, style in _heading(capsule.about)]
    parts.append(_table(capsule, steps))
    hidden = len(capsule.values) - _MOST_ROWS
    if hidden > 0:
        parts.append(Text(f"{hidden} more keys are in the file: --json prints them", style="dim"))
    if capsule.left_out:
        parts.append(Text(f"{capsule.left_out} more keys had no room in the file", style="dim"))
    notes = capsule.about.get("notes")
    parts += [Text(message(note, 1000), style="yellow") for note in (notes if isinstance(notes, list) else [])[:20]]
    trace = _dict(capsule.about.get("reason")).get("traceback")
    parts += [
        Text(_block("config.yaml", capsule.about.get("config")), style="dim"),
        Text(_block("", trace), style="dim"),
    ]
    parts += [Text(f"damaged, left out: {inert(problem)}", style="bold red") for problem in capsule.problems]
    return Group(*parts)


def _heading(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    reason, iteration = _dict(about.get("reason")), _dict(about.get("iteration"))
    at = ", ".join(f"{unit} {_short(iteration.get(unit, '?'))}" for unit in ("epoch", "update", "sample"))
    step = about.get("accumulation_step")
    yield f"{_short(reason.get('kind', 'what ended the run is not known'))} after {at}{_also(step)}", "bold red"
    if reason.get("message"):
        yield message(reason["message"], 4000), ""
    versions = {"python": about.get("python", "?"), **_dict(about.get("versions"))}
    yield ", ".join(f"{_short(name)} {_short(version)}" for name, version in list(versions.items())[:20]), "dim"
    process, of, *_ = [*_list(about.get("process")), "?", "?"]
    where = (
        f"start {_short(about.get('start'))}, process {_short(process)} of {_short(of)} on {_short(about.get('host'))}"
    )
    yield f"{_time(about.get('time'))}, {where}", "dim"


def _also(step: Any) -> str:
    return f", and {_short(step)} accumulation steps of the next" if step not in (None, 0) else ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _short(value: Any) -> str:
    return message(str(value), 80).replace("\n", " ")


def _block(title: str, text: Any) -> str:
    lines = message(text if isinstance(text, str) else "(missing)").rstrip("\n")
    return f"{title}\n{lines}" if title else lines


def _time(seconds: Any) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (TypeError, ValueError, OverflowError, OSError):
        return "at an unknown time"


def _table(capsule: Capsule, most: int) -> Table:
    """Return a row for each key, and a column for each of the newest steps, or of those around the first that is not finite."""
    shown = capsule.values[:_MOST_ROWS]
    steps = sorted({step for each in shown for step in each.steps})
    first = min((step for each in shown if (step := _first_odd(each)) is not None), default=None)
    end = len(steps) if first is None else steps.index(first) + 1 + _AFTER
    steps = steps[max(0, min(end, len(steps)) - most) :][:most]
    table = Table(title=Text(inert(str(capsule.path)), style="bold"), title_justify="left")
    for heading in ("key", "first non-finite", "course"):
        table.add_column(heading, overflow="fold")
    for step in steps:
        table.add_column(_name(step), justify="right", overflow="fold")
    for values in shown:
        table.add_row(*_row(values, steps))
    if not shown:
        table.caption = "no values of any key were kept"
    return table


def _name(step: Step) -> str:
    update, accumulation_step = step
    return f"U{update}" + (f".{accumulation_step}" if accumulation_step else "")


def _row(values: Values, steps: list[Step]) -> Iterator[Text]:
    first = _first_odd(values)
    yield Text(inert(values.key[:500]))
    yield Text("" if first is None else _name(first), style="bold red")
    yield Text(sparkline([_as_number(value) for value in values.values]))
    found = dict(zip(values.steps, values.values, strict=True))
    for step in steps:
        text = _cell(found[step]) if step in found else ""
        yield Text(f"✗ {text}", style="bold red") if step == first else Text(text)


def _first_odd(values: Values) -> Step | None:
    return next((step for step, value in zip(values.steps, values.values, strict=True) if is_odd(value)), None)


def is_odd(value: Any) -> bool:
    """Tell whether a value is not finite, or one of many is not."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, list):
        return any(map(is_odd, value))
    return isinstance(value, dict) and any(value.get(name) for name in _ODD)


def _as_number(value: Any) -> float:
    """Return what of a value makes its course: itself, or the mean."""
    if isinstance(value, dict):
        value = value.get("mean") if not is_odd(value) else None
    if isinstance(value, list):
        numbers = [_as_number(each) for each in value]
        return sum(each / len(numbers) for each in numbers) if numbers else math.nan
    return as_float(value) if isinstance(value, int | float) else math.nan


def _cell(value: Any) -> str:
    if isinstance(value, list):
        text = f"[{', '.join(map(_cell, value[:8]))}{', …' * (len(value) > 8)}]"
    elif isinstance(value, dict):
        odd = [f"{number(value[name])} {name}" for name in _ODD if value.get(name)]
        text = ", ".join([*([f"~{number(value['mean'])}"] if "mean" in value else []), *odd])
    else:
        text = number(value)
    text = inert(text)
    return text if len(text) <= _MOST_CELL else text[: _MOST_CELL - 1] + "…"
