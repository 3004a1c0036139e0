"""Read YAML that a stranger may have written: within bounds, each key once, and with one kind of error."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from noether_core.errors import ConfigFileError, NoetherError, RunFormatError
from noether_core.regular_files import read_regular

MOST_BYTES = 2**20  # of a file
MOST_DEPTH = 50  # lists and mappings around a value
_MOST_WEIGHT = 2**21  # of a document whose aliases are written out
_NODE_WEIGHT = 32  # of a list, a mapping or a scalar; a scalar also has its characters
_HEAD, _TAIL = b"# noether config, crc32 ", b" of the lines below: take this line away when you change them\n"
_LARGE = 2**16  # characters


class _EachKeyOnce:
    """Refuse a key that a mapping has twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """Return the mapping of a node."""
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r:.80} is there twice; keep one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)  # type: ignore[misc]


class _Loader(_EachKeyOnce, yaml.SafeLoader):
    """Show the place of an error."""


class _FastLoader(_EachKeyOnce, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Read a large document ten times as fast."""


def parse_yaml(text: str, where: str) -> Any:
    """Return what a YAML text holds.

    Raises:
        ConfigFileError: for what is no YAML, is too large or nested too deep, or says nothing that plain values can be; its
            message says that it is from `where`.
    """
    loader: Any = _Loader if len(text) <= _LARGE else _FastLoader
    try:
        if problem := _beyond_bounds(yaml.parse(text, Loader=loader)):
            raise ConfigFileError(f"{where} {problem}; write it out plainly")
        return loader(text).get_single_data()
    except ConfigFileError:
        raise
    except yaml.YAMLError as error:
        raise ConfigFileError(f"{where} is not valid YAML: {error!s:.1000}") from None
    except Exception as error:  # whatever the library raises for a date, a number or a tag that holds something else
        raise ConfigFileError(
            f"{where} is not valid YAML: a value is not what its form or tag says ({type(error).__name__}: {error!s:.200})"
        ) from None


def _beyond_bounds(events: Iterable[Any]) -> str | None:
    """Say whether a document is nested deep, contains itself, or is made large by its aliases; None if it is not."""
    weight = 0
    weights: dict[str, int] = {}  # of what is anchored
    begun: list[tuple[str | None, int]] = []  # the anchors around what comes, and the weight before each
    for event in events:
        begin, anchor = weight, getattr(event, "anchor", None)
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == around for around, _ in begun):
                return f"has a value, &{anchor:.80}, that contains itself"
            weight += weights.get(str(anchor), 0)
        elif isinstance(event, yaml.CollectionStartEvent):
            weight += _NODE_WEIGHT
            begun.append((anchor, begin))
        elif isinstance(event, yaml.ScalarEvent):
            weight += _NODE_WEIGHT + len(event.value)
            weights[str(anchor)] = weight - begin
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, begin = begun.pop()
            weights[str(anchor)] = weight - begin
        if len(begun) > MOST_DEPTH:
            return f"is nested more than {MOST_DEPTH} deep"
        if weight > _MOST_WEIGHT:
            return "holds too much, its aliases written out"
    return None


def read_text(path: Path) -> str:
    """Return a config's text; of one that a run wrote, the checksum is checked.

    Raises:
        ConfigFileError: for a file that cannot be read, is too large, or was changed.
    """
    name = f"config file {str(path)!r}"
    try:
        data = read_regular(path, MOST_BYTES)
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        raise ConfigFileError(f"{name} does not exist; give a YAML file with a `callbacks:` list") from error
    except (OSError, UnicodeDecodeError, RunFormatError) as error:
        raise ConfigFileError(f"{name} cannot be read: {error}; give a YAML text file") from error
    first, _, rest = data.partition(b"\n")
    is_marked = first.startswith(_HEAD[:16]) or _TAIL[:-1] in first
    if is_marked and data != with_checksum(rest):
        raise ConfigFileError(
            f"{name}, byte 0: its CRC-32 does not match: it was damaged, or changed since a run wrote it; if you changed it,"
            " take its first line away"
        )
    return text


def require_readable(document: bytes) -> None:
    """Raise `NoetherError` for a run's config that is larger than what is read back."""
    if len(document) > MOST_BYTES:
        raise NoetherError(
            f"the run's config has {len(document):,} bytes in YAML, and at most {MOST_BYTES:,} are read back; name keys by"
            " `patterns` instead of one by one"
        )


def with_checksum(document: bytes) -> bytes:
    """Return the file of a run's config: a comment with the CRC-32 of what follows."""
    return b"%s%08x%s%s" % (_HEAD, zlib.crc32(document), _TAIL, document)
