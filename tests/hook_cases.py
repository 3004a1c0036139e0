"""Share how the tests of the hooks train, and how they read what was logged."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import noether_jax
import noether_torch
from noether_core import (
    CallbackBase,
    CallbackBaseConfig,
    LogWriter,
    TrackAdditionalOutputsCallbackConfig,
    UpdateCounter,
    read_run,
)

FRONT_ENDS = (noether_jax, noether_torch)
HOOKS = (
    "before_training",
    "track_after_accumulation_step",
    "track_after_update_step",
    "after_update",
    "after_epoch",
    "at_eval",
    "after_training",
)
NAN, INF = float("nan"), float("inf")

each_front_end = pytest.mark.parametrize("front_end", FRONT_ENDS)


def every(updates: int, **fields: Any) -> dict[str, Any]:
    return {"every_n_updates": updates, **({} if "patterns" in fields else {"keys": ["loss"]}), **fields}


def array(front_end: Any, value: Any, dtype: Any = np.float32) -> Any:
    return front_end.Run.backend.from_numpy(np.asarray(value, dtype))


def train(front_end: Any, path: Path, configs: Sequence[Any], steps: Iterable[Any], **arguments: Any) -> Any:
    with front_end.Run(path, configs, **arguments) as run:
        for outputs in steps:
            run.step(outputs)
    return run


def losses(front_end: Any, *values: Any) -> list[dict[str, Any]]:
    return [{"loss": array(front_end, value)} for value in values]


def logged(path: Path, key: str) -> list[tuple[int, Any]]:
    return [(point.update, point.value) for point in read_run(path).series.get(key, [])]


def lines(path: Path) -> list[bytes]:
    return b"".join(
        file.read_bytes() for file in sorted((path / "metrics").glob("*.jsonl")) if file.stem.isdecimal()
    ).splitlines()


def tracker(front_end: Any, log_writer: Any, path: Path | None = None, **fields: Any) -> Any:
    config = TrackAdditionalOutputsCallbackConfig(**fields)
    return front_end.TrackAdditionalOutputsCallback(config, log_writer=log_writer, output_path=path)


def write_nothing() -> LogWriter:
    return LogWriter(update_counter=UpdateCounter())


class Recorder(CallbackBase):
    """Note every call with the counter as it shows, and fail at the hooks that are named."""

    def __init__(self, fail_at: Sequence[str] = (), message: str = "no") -> None:
        super().__init__(CallbackBaseConfig(), log_writer=write_nothing())
        self.calls: list[tuple[Any, ...]] = []
        self._fail_at, self._message = fail_at, message

    def _note(self, hook: str, update_counter: UpdateCounter, *more: Any) -> None:
        self.calls.append((hook, str(update_counter.cur_iteration), *more))
        if hook in self._fail_at:
            raise OSError(self._message)

    def before_training(self, *, update_counter: Any, **_: Any) -> None:
        self._note("before_training", update_counter)

    def track_after_accumulation_step(self, *, update_counter: Any, **more: Any) -> None:
        shown = [more[name] for name in ("accumulation_step", "accumulation_steps", "update_outputs")]
        self._note("track_after_accumulation_step", update_counter, *shown)

    def track_after_update_step(self, *, update_counter: Any, **_: Any) -> None:
        self._note("track_after_update_step", update_counter)

    def after_update(self, *, update_counter: Any, **_: Any) -> None:
        self._note("after_update", update_counter)

    def after_epoch(self, *, update_counter: Any, **_: Any) -> None:
        self._note("after_epoch", update_counter)

    def after_training(self, *, update_counter: Any, **_: Any) -> None:
        self._note("after_training", update_counter)


def saved_and_logged(paths: Sequence[Path]) -> dict[str, bytes]:
    saved = {str(file.relative_to(path)): file.read_bytes() for path in paths for file in path.rglob("*.safetensors")}
    return {**saved, "metrics": b"\n".join(line for path in paths for line in lines(path))}
