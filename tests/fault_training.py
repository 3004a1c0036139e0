"""Make the training whose processes the tests stop and kill."""

from __future__ import annotations

import time
from typing import Any

import ml_dtypes
import numpy as np

from noether_core.errors import ProcessesMissingError
from parity_tests.drawn_trainings import EFFECTIVE_BATCH_SIZE, UPDATES_PER_EPOCH, Training

LIMIT = 3.0  # seconds that a process waits for the others
COUNT = 3
UPDATES = 8
CONFIGS: list[dict[str, Any]] = [
    {"every_n_updates": 2, "id": "log", "keys": ["x", "y"], "reduce": {"": ["mean", "std", "sum", "min", "max"]}},
    {
        "every_n_updates": 4,
        "id": "save",
        "patterns": ["fixed"],
        "reduce": {"": ["count", "mean", "last", "stack"]},
        "log_output": False,
        "save_output": True,
    },
]


def training_of() -> Training:
    rng = np.random.default_rng(7)

    def outputs() -> dict[str, Any]:
        return {
            "x": np.asarray(rng.normal(size=(3,)).astype(ml_dtypes.bfloat16)),
            "y": float(rng.normal()) if rng.random() < 0.9 else float("nan"),
            "fixed/array": rng.normal(size=(2, 2)).astype(np.float32),
        }

    steps = [[[outputs() for _ in range(COUNT)]] for _ in range(UPDATES)]
    configs = [config | {"nonfinite": "propagate"} for config in CONFIGS]
    return Training(configs, 1, [UPDATES] * COUNT, steps, frozenset(), is_costly=False)


class Part:
    """Be one process of the training.

    Args:
        run_class: the front-end's `Run`.
        path: the run directory.
        index: the process's number.
        time_limit: seconds that it waits for the others; None: the default.
    """

    def __init__(self, run_class: Any, path: str, index: int, time_limit: float | None = LIMIT) -> None:
        given: dict[str, Any] = {"updates_per_epoch": UPDATES_PER_EPOCH, "effective_batch_size": EFFECTIVE_BATCH_SIZE}
        given |= {} if time_limit is None else {"time_limit": time_limit}
        self.run = run_class(path, CONFIGS, **given)
        self._steps = [step[0][index] for step in training_of().steps]
        self.run.start()

    def go(self, first: int, last: int) -> None:
        """Make some updates."""
        for outputs in self._steps[first - 1 : last]:
            self.run.step({**outputs, "x": self.run.backend.from_numpy(outputs["x"])})

    def stumble(self, pauses: list[float]) -> list[str]:
        """Make all updates with a pause before each, and go on after those that others missed; return what was raised."""
        errors = []
        for update, pause in enumerate(pauses, 1):
            time.sleep(pause)
            try:
                self.go(update, update)
            except ProcessesMissingError as error:
                errors.append(str(error))
        try:
            self.run.finish()
        except ProcessesMissingError as error:
            errors.append(str(error))
        return errors
