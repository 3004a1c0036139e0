"""Hold what a trainer's user records of one micro-batch."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from noether_core.errors import UpdateOutputError
from noether_core.select import flatten


def taken(value: Any) -> Any:
    """Return a value that nothing done to the given one changes: arrays, and lists of these, copied, tensors detached too.

    >>> buffer = np.zeros(1); held = taken([buffer]); buffer[:] = 1; held
    [array([0.])]
    """
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return [taken(each) for each in value]
    if isinstance(value, np.ndarray) or hasattr(value, "__array__") or hasattr(value, "__dlpack__"):
        return copy.deepcopy(value)
    return value


@dataclass
class MicroBatch:
    """Collect what several calls of `record` say of one micro-batch.

    Attributes:
        outputs: the update outputs, flat.
        losses: a number, or a dict of some; None where none were given.
        samples: how many samples it had; None where that was not said.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    losses: Any = None
    samples: int | None = None

    def add(
        self,
        update_outputs: Mapping[str, Any] | None,
        losses: Any,
        samples: Any,
        is_tracked: Callable[[str, Any], bool],
    ) -> None:
        """Take the values of those outputs that are tracked, and of the losses; on an error everything stays as it was.

        Raises:
            UpdateOutputError: if something is recorded twice, or is not what it should be.
        """
        outputs = {} if update_outputs is None else flatten(update_outputs)
        twice = next((repr(key) for key in outputs if key in self.outputs), None)
        if losses is not None and self.losses is not None:
            twice = twice or "'losses'"
        if samples is not None and self.samples is not None:
            twice = twice or "'samples'"
        if twice:
            raise UpdateOutputError(
                f"update output {twice} was recorded twice in one micro-batch; record each name once, or under another name"
            )
        if samples is not None:
            self.samples = _number_of(samples)
        self.outputs |= {key: taken(value) if is_tracked(key, value) else value for key, value in outputs.items()}
        if losses is not None:
            flat = flatten(losses) if isinstance(losses, Mapping) else {"": losses}
            copies = {name: taken(loss) for name, loss in flat.items()}
            self.losses = copies if isinstance(losses, Mapping) else copies[""]


def _number_of(samples: Any) -> int:
    try:
        number = -1 if isinstance(samples, bool) else operator.index(samples)
    except (TypeError, ValueError):
        number = -1
    if number < 0:
        raise UpdateOutputError(
            f"record got samples={samples!r:.80}; expected an int of at least 0, such as len(inputs['labels'])"
        )
    return number
