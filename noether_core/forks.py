"""Tell what is open in a process that it was forked: what it writes, and holds, is its parent's."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import TypeVar

Owner = TypeVar("Owner")


def in_children(owner: Owner, act: Callable[[Owner], None]) -> None:
    """Call `act` with an object in every child that `os.fork` makes from here on, as long as anybody has that object.

    Data loaders and `multiprocessing` fork by it. A system without forks has no children to be told.
    """
    reference = weakref.ref(owner)

    def tell() -> None:
        found = reference()
        if found is not None:
            act(found)

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=tell)
