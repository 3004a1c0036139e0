"""Write what a run had when it failed as one small file, its capsule, and read it back.

A capsule is lines of strict JSON, each with its CRC-32 (`noether_core.emit.jsonl`): first what happened, then a line for each
key with its newest values, those first that have NaN or infinities, and at last how many lines there should be. It has at most
`MOST_BYTES`: of many keys there are fewer values, of very many not all keys, and it says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from noether_core.emit.jsonl import encode_line, plain
from noether_core.emit.lines import iter_lines
from noether_core.emit.problems import Problems
from noether_core.errors import RunFormatError
from noether_core.regular_files import open_regular, require_no_links
from noether_core.text import for_json

DIRECTORY = "capsules"  # in a run directory
MOST_BYTES = 5_000_000
_MOST_READ = 2**23  # bytes
_TAIL = 200  # bytes
_VERSION = 1
_FEW = 16  # elements of a list; of more there is a summary
Step = tuple[int, int]  # an update, from 1, and its accumulation step, from 0


class Newest(Protocol):
    """Give the newest values of a key; see `noether_core.reduce.latest`."""

    @property
    def key(self) -> str:
        """Return the key."""

    @property
    def callback(self) -> str:
        """Return who tracks it."""

    @property
    def elements(self) -> int:
        """Return how many elements a value has at most."""

    @property
    def is_odd(self) -> bool:
        """Tell whether a value is not finite."""

    def newest(self, most: int) -> Iterator[tuple[Step, Any]]:
        """Yield so many, the newest last: numbers, lists of few, or dicts that say what is known of many."""


def encode_capsule(
    about: Mapping[str, Any], values: Sequence[Newest], most: int, most_bytes: int = MOST_BYTES
) -> bytes:
    """Return a capsule with at most so many values of each key, in at most so many bytes."""
    callbacks = list(dict.fromkeys(each.callback for each in values))
    head = encode_line({"capsule": _VERSION, **about, "callbacks": callbacks})
    room = most_bytes - len(head) - _TAIL
    while most > 1 and sum(_size(each, most) for each in values) > room:
        most //= 2
    lines, left_out = [head], 0
    for each in sorted(values, key=lambda each: not each.is_odd):
        steps, newest = zip(*each.newest(most), strict=True)
        line = encode_line(
            {
                "key": each.key,
                "callback": callbacks.index(each.callback),
                "steps": [*map(list, steps)],
                "values": list(newest),
            }
        )
        if len(line) > room:
            left_out += 1
            continue
        room -= len(line)
        lines.append(line)
    return b"".join([*lines, encode_line({"keys": len(lines) - 1, "left_out": left_out, "most": most})])


def _size(values: Newest, most: int) -> int:
    """Return about how many bytes a line has."""
    per_value = 12 + (22 * values.elements if values.elements <= _FEW else 120)
    return 80 + len(values.key) + most * per_value


def write_capsule(root: Path, iteration: str, data: bytes, write: Callable[[Path, bytes], bool]) -> Path:
    """Write a capsule into a run directory, under a name of its own; return its path.

    Raises:
        OSError, RunFormatError: if it cannot be written there.
    """
    path = root / DIRECTORY / f"{iteration}-{secrets.token_hex(4)}.capsule"
    require_no_links(root, path)
    if not write(path, data):
        raise OSError("the disk does not take it")
    return path


@dataclass(frozen=True)
class Values:
    """Hold the newest values of a key.

    Attributes:
        key: the key.
        callback: who tracked it.
        steps: the update and the accumulation step of each, the newest last.
        values: numbers, lists of few, or dicts that say what is known of many: their `elements`, the `min`, `max` and `mean` of
            those that are finite, and how many are `nan`, `inf` and `-inf`.
    """

    key: str
    callback: str
    steps: list[Step]
    values: list[Any]


@dataclass(frozen=True)
class Capsule:
    """Hold what a run had when it failed.

    Attributes:
        path: of the file.
        about: what happened.
        values: the newest values of each key.
        left_out: how many keys had no room.
        problems: a sentence for all that is damaged or missing.
    """

    path: Path
    about: Mapping[str, Any]
    values: list[Values]
    left_out: int
    problems: list[str]

    def as_json(self) -> dict[str, Any]:
        """Return all of it as JSON can hold it; what is not finite is named, as in a log."""
        whole = {
            "about": {name: plain(value, -1) for name, value in self.about.items()},
            "values": [{**vars(each), "values": plain(each.values)} for each in self.values],
            "left_out": self.left_out,
            "problems": self.problems,
        }
        return dict(for_json(whole))


def read_capsule(path: str | Path, root: Path | None = None) -> Capsule:
    """Read a capsule; a damaged line costs no other.

    Args:
        path: the file.
        root: the run directory, below which no link is followed.

    Raises:
        RunFormatError: for a file that is none.
        OSError: if it cannot be read.
    """
    path, problems = Path(path), Problems()
    with open_regular(path, root) as file:
        size = file.seek(0, 2)
    if size > _MOST_READ:
        raise RunFormatError(f"{path} has {size:,} bytes; a capsule has at most {MOST_BYTES:,}")
    head: dict[str, Any] | None = None
    end: dict[str, Any] | None = None
    values: list[Values] = []
    for line in iter_lines(path, problems, _problem):
        if "capsule" in line:
            head = line if head is None else head
        elif "key" in line:
            steps = [(update, step) for update, step in line["steps"]]
            values.append(Values(line["key"], _callback(head, line["callback"]), steps, line["values"]))
        else:
            end = line
    if head is None and not values:
        raise RunFormatError(f"{str(path)!r} is no capsule of a run{f' ({problems[0]})' if problems else ''}")
    if head is None:
        problems.append(f"{path}, byte 0: what happened is missing")
    if end is None or len(values) != end["keys"]:
        wanted = "its end is" if end is None else f"{end['keys'] - len(values)} of {end['keys']} keys are"
        problems.append(f"{path}: {wanted} missing")
    return Capsule(path, head or {}, values, 0 if end is None else end["left_out"], problems)


def _callback(head: Mapping[str, Any] | None, number: int) -> str:
    names = None if head is None else head.get("callbacks")
    return str(names[number]) if isinstance(names, list) and number < len(names) else f"callback {number}"


def _problem(line: Mapping[str, Any]) -> str | None:
    """Say what keeps a line from being one of a capsule; None if nothing does."""
    if "capsule" in line:
        return None if line["capsule"] == _VERSION else f"it is of version {line['capsule']!r:.40}; expected {_VERSION}"
    if "key" not in line:
        counts = [line.get(name) for name in ("keys", "left_out", "most")]
        is_sound = all(type(count) is int and 0 <= count < 2**63 for count in counts)
        return None if is_sound else f"its counts are {counts!r:.80}; expected three ints"
    steps, values = line.get("steps"), line.get("values")
    key, number = line["key"], line.get("callback")
    if not isinstance(key, str) or type(number) is not int or not 0 <= number < 2**63:
        return f"its key is {key!r:.80}, of callback {number!r:.40}; expected text, and a number"
    if not isinstance(steps, list) or not isinstance(values, list) or len(steps) != len(values):
        return f"it has the steps {steps!r:.80} of the values {values!r:.80}; expected as many of each"
    odd = [step for step in steps if not _is_step(step)]
    if odd:
        return f"it has the step {odd[0]!r:.80}; expected an update and its accumulation step"
    odd = [value for value in values if not _is_value(value)]
    return f"it has the value {odd[0]!r:.80}; expected a number, a list of numbers or a dict of them" if odd else None


def _is_step(step: Any) -> bool:
    return isinstance(step, list) and len(step) == 2 and all(type(each) is int and 0 <= each < 2**63 for each in step)


def _is_value(value: Any) -> bool:
    inner = value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else [value]
    return all(isinstance(each, int | float) for each in inner)
