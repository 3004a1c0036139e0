"""How far training is, and how long it will take, as messages or a bar."""

from __future__ import annotations

import io
import logging
from typing import Any

import pytest
from rich.console import Console
from small_callback_cases import Clock

from noether_core import (
    CallbackBase,
    LogWriter,
    ProgressCallback,
    ProgressCallbackConfig,
    TrainingIteration,
    UpdateCounter,
)


def progress(clock: Clock, counter: UpdateCounter, **arguments: Any) -> ProgressCallback:
    config = ProgressCallbackConfig(every_n_updates=2, bar="console" in arguments)
    return ProgressCallback(config, log_writer=LogWriter(update_counter=counter), clock=clock, **arguments)


def advance(callback: CallbackBase, counter: UpdateCounter, clock: Clock, updates: int) -> None:
    for _ in range(updates):
        clock.now += 30.0
        counter.add_samples(4)
        counter.next_update()
        callback.track_after_update_step(update_counter=counter)
        callback.after_update(update_counter=counter)


def test_progress_says_where_how_much_and_how_long(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, counter = Clock(), UpdateCounter(None, TrainingIteration(update=8), effective_batch_size=4)
    callback = progress(clock, counter)
    callback.before_training(update_counter=counter)
    advance(callback, counter, clock, 5)
    resumed = progress(clock, counter)
    resumed.before_training(update_counter=UpdateCounter())
    clock.now += 5000.0
    resumed.load_state_dict(callback.state_dict())
    advance(resumed, counter, clock, 3)
    assert caplog.messages == [
        "E0_U2_S8 of E0_U8_S32: 25.0 %, 0:03:00 left",
        "E0_U4_S16 of E0_U8_S32: 50.0 %, 0:02:00 left",
        "E0_U6_S24 of E0_U8_S32: 75.0 %, 0:01:00 left",
        "E0_U8_S32 of E0_U8_S32: 100.0 %, 0:00:00 left",
    ]
    assert {record.name for record in caplog.records} == {"ProgressCallback(every_n_updates=2)"}


def test_progress_without_an_end_says_how_fast(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    clock, counter = Clock(), UpdateCounter()
    callback = progress(clock, counter)
    callback.before_training(update_counter=counter)
    advance(callback, counter, clock, 2)
    assert caplog.messages == ["E0_U2_S8, 0.0333 updates/s"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_the_bar_is_shown_on_a_terminal_only(is_terminal: bool) -> None:
    file, clock, counter = io.StringIO(), Clock(), UpdateCounter(None, TrainingIteration(update=8))
    callback = progress(clock, counter, console=Console(file=file, force_terminal=is_terminal, width=80))
    callback.before_training(update_counter=counter)
    advance(callback, counter, clock, 6)
    callback.after_training(update_counter=counter)
    assert ("6/8" in file.getvalue()) is is_terminal
