"""Share how the tests of the flight recorder let a run fail, and read what it left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hook_cases import array

from noether_core.emit.capsule import Capsule, read_capsule

Rows = list[tuple[tuple[int, int], Any]]


def capsules(path: Path) -> list[Capsule]:
    files = sorted((path / "capsules").glob("*"), key=lambda file: file.stat().st_mtime_ns)
    return [read_capsule(file, path) for file in files]


def the_capsule(path: Path) -> Capsule:
    (capsule,) = capsules(path)
    assert capsule.problems == []
    return capsule


def rows(capsule: Capsule) -> dict[str, Rows]:
    return {each.key: list(zip(each.steps, each.values, strict=True)) for each in capsule.values}


def ended(run: Any, error: BaseException, body: Callable[[Any], object]) -> BaseException:
    """Raise an error in a run's `with` block, and return what comes out."""

    def train() -> None:
        with run:
            body(run)
            raise error

    with pytest.raises(BaseException) as caught:  # the caller looks at it
        train()
    return caught.value


def steps(front_end: Any, count: int, first: int = 0) -> Callable[[Any], None]:
    def body(run: Any) -> None:
        for number in range(first, first + count):
            run.step({"loss": array(front_end, number)})

    return body
