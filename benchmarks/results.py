"""Keep what the tool says of planted bugs and of correct pairs in files, so that a run that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import noether_core.parity

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Result = TypeVar("Result", bound=DataclassInstance)

PACKAGES = ("torch", "jax", "jaxlib", "flax", "optax", "numpy")


@dataclass(frozen=True)
class Correct:
    """Hold what the tool says of a correct pair: of which way and seed, the outcome, and the sentence."""

    way: str
    seed: int
    outcome: str
    sentence: str

    @property
    def is_same(self) -> bool:
        """Whether it is called the same."""
        return self.outcome == "same"


def kept(folder: Path | None, name: str, kind: type[Result], find: Callable[[], Result]) -> Result:
    """Return a result that a folder has of these rules, or find it and keep it there.

    Args:
        folder: `RULES/NAME.json` is kept there; None: nothing is.
        name: of the result.
        kind: what it is, a dataclass of plain values.
        find: finds it.
    """
    if folder is None:
        return find()
    there = taken(folder, name, kind)
    if there is not None:
        return there
    found = find()
    path = folder / rules() / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(found), indent=1), encoding="utf-8")
    return found


def taken(folder: Path, name: str, kind: type[Result]) -> Result | None:
    """Return a result that a folder has of these rules, or None."""
    path = folder / rules() / f"{name}.json"
    if not path.is_file():
        return None
    read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    values = {field: tuple(value) if isinstance(value, list) else value for field, value in read.items()}
    return kind(**values)


@cache
def rules() -> str:
    """Return a digest of the rules and of the packages' versions: results of others are no part of one page."""
    root = Path(noether_core.parity.__path__[0])
    found = hashlib.sha256(versions().encode())
    for source in sorted(root.rglob("*.py")):
        found.update(source.relative_to(root).as_posix().encode() + b"\0" + source.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def share(right: Iterable[bool]) -> str:
    """Return how many are right.

    >>> share([True, True, False])
    '2 of 3 (67 %)'
    """
    each = list(right)
    return f"{sum(each)} of {len(each)} ({100 * sum(each) / max(len(each), 1):.0f} %)"


def versions() -> str:
    """Return with what was measured: `Linux x86_64, Python 3.12.4, torch 2.11.0` and so on."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"
