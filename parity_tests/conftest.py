"""Give the processes of a front-end, which many tests use in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from parity_tests.processes import Group


@pytest.fixture(scope="module")
def group_of() -> Iterator[Callable[[str, int], Group]]:
    """Return what gives the processes of a front-end, which are started once."""
    with ExitStack() as stack:
        groups: dict[tuple[str, int], Group] = {}

        def group(front_end: str, count: int) -> Group:
            for key in [key for key in groups if key[1] != count]:
                groups.pop(key).close()
            if (front_end, count) not in groups:
                groups[front_end, count] = stack.enter_context(Group(front_end, count))
            return groups[front_end, count]

        yield group
