"""Any trainer can call the hooks, with a counter and keywords of its own."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hook_cases import HOOKS, array, each_front_end, every, logged, tracker, write_nothing

from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig, TrainingIteration, UpdateCounter, read_run


@each_front_end
def test_any_trainer_can_call_the_hooks_and_pass_more_than_they_know(front_end: Any, tmp_path: Path) -> None:
    counter = UpdateCounter(updates_per_epoch=2, effective_batch_size=4)
    writer = LogWriter(tmp_path, update_counter=counter)
    more = {"trainer": object(), "anything": 3}
    callback = tracker(front_end, writer, **every(2))
    callback.before_training(update_counter=counter, **more)
    for update in range(5):
        for step in range(2):
            outputs = {"loss": array(front_end, 2 * update + step)}
            callback.track_after_accumulation_step(
                update_counter=counter,
                batch=None,
                losses={},
                update_outputs=outputs,
                accumulation_steps=2,
                accumulation_step=step,
                **more,
            )
        counter.add_samples(4)
        counter.next_update()
        callback.track_after_update_step(update_counter=counter, times={"forward": 0.1}, **more)
        callback.after_update(update_counter=counter, **more)
        if counter.is_full_epoch:
            counter.next_epoch()
            callback.after_epoch(update_counter=counter, **more)
        writer.flush()
        callback.at_eval(update_counter=counter, **more)
    callback.after_training(update_counter=counter, **more)
    writer.close()
    assert logged(tmp_path, "loss/U2") == [(2, 1.5), (4, 5.5), (5, 8.5)]


@pytest.mark.parametrize("hook", HOOKS)
@each_front_end
def test_a_hook_takes_no_positional_argument(front_end: Any, hook: str) -> None:
    callback = tracker(front_end, write_nothing(), **every(2))
    with pytest.raises(TypeError, match="positional"):
        getattr(callback, hook)(UpdateCounter())
    kinds = {each.kind for each in inspect.signature(getattr(callback, hook)).parameters.values()}
    assert kinds == {inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD}


@each_front_end
def test_a_counter_of_the_users_own_works(front_end: Any, tmp_path: Path) -> None:
    counter = SimpleNamespace(epoch=0, update=0, sample=0, cur_iteration=TrainingIteration(0, 0, 0))
    writer = LogWriter(tmp_path, update_counter=counter)
    callback = tracker(front_end, writer, tmp_path, **every(2, save_output=True))
    for update in range(1, 5):
        callback.track_after_accumulation_step(
            update_counter=counter, update_outputs={"loss": array(front_end, update)}
        )
        counter.update, counter.sample = update, 3 * update
        counter.cur_iteration = TrainingIteration(0, update, 3 * update)
        callback.after_update(update_counter=counter)
    writer.close()
    assert logged(tmp_path, "loss/U2") == [(2, 1.5), (4, 3.5)]
    assert [str(file.iteration) for file in read_run(tmp_path).arrays] == ["E0_U2_S6", "E0_U4_S12"]


@each_front_end
def test_what_trainers_pass_to_every_callback_is_kept(front_end: Any) -> None:
    names = ("trainer", "model", "data_container", "tracker", "checkpoint_writer", "metric_property_provider", "name")
    given = {name: object() for name in names}
    callback = front_end.TrackAdditionalOutputsCallback(
        TrackAdditionalOutputsCallbackConfig(**every(2)), log_writer=write_nothing(), **given
    )
    assert {name: getattr(callback, name) for name in names} == given
    assert (callback.keys, callback.patterns, callback.reduce, callback.out) == (["loss"], [], "mean", None)
