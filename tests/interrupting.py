"""Raise KeyboardInterrupt at the n-th line of our code that a call executes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

_OURS = tuple(str(Path(__file__).parents[1] / name) for name in ("noether_core", "noether_torch", "noether_jax"))


def _is_deleting(frame: FrameType) -> bool:
    """Tell whether what this raises, Python ignores."""
    caller = frame.f_back
    return "__del__" in (frame.f_code.co_name, caller.f_code.co_name if caller is not None else "")


class Interrupter:
    """Count the lines of our code that are executed, and raise at one of them; only once.

    Attributes:
        count: how many lines there were.
        place: where it raised.
        ends: the numbers of each line's first and last execution.
    """

    def __init__(self, at: int = 0) -> None:
        self._at = at
        self.count = 0
        self.place = ""
        self.ends: dict[tuple[str, int], tuple[int, int]] = {}

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS) or _is_deleting(frame):
            return None
        if event == "line":
            self.count += 1
            line = frame.f_code.co_filename, frame.f_lineno
            self.ends[line] = self.ends.get(line, (self.count,))[0], self.count
            if self.count == self._at:
                self.place = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_qualname}"
                raise KeyboardInterrupt(self.place)
        return self

    def run(self, call: Callable[[], Any]) -> bool:
        """Call; tell whether it was interrupted."""
        before, with_gradients = sys.gettrace(), torch.is_grad_enabled()
        sys.settrace(self)
        try:
            call()
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(before)
            torch.set_grad_enabled(
                with_gradients
            )  # `with` has no handler for the line on which it ends, that of no_grad too
        return False
