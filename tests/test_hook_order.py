"""The hooks come in one order, and a callback that fails costs the others nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hook_cases import HOOKS, Recorder, each_front_end, every, lines, logged, losses, tracker, train, write_nothing

from noether_core import HookOrderError, MissingKeyError, UpdateCounter, read_run


@each_front_end
def test_the_hooks_come_in_order_and_the_counter_moves_after_the_last_accumulation_step(
    front_end: Any, tmp_path: Path
) -> None:
    recorder = Recorder()
    train(
        front_end,
        tmp_path,
        [recorder],
        [{"n": n} for n in range(6)],
        updates_per_epoch=2,
        effective_batch_size=8,
        accumulation_steps=2,
    )
    step = "track_after_accumulation_step"
    assert recorder.calls == [
        ("before_training", "E0_U0_S0"),
        (step, "E0_U0_S0", 0, 2, {"n": 0}),
        (step, "E0_U0_S0", 1, 2, {"n": 1}),
        ("track_after_update_step", "E0_U1_S8"),
        ("after_update", "E0_U1_S8"),
        (step, "E0_U1_S8", 0, 2, {"n": 2}),
        (step, "E0_U1_S8", 1, 2, {"n": 3}),
        ("track_after_update_step", "E1_U2_S16"),
        ("after_update", "E1_U2_S16"),
        ("after_epoch", "E1_U2_S16"),
        (step, "E1_U2_S16", 0, 2, {"n": 4}),
        (step, "E1_U2_S16", 1, 2, {"n": 5}),
        ("track_after_update_step", "E1_U3_S24"),
        ("after_update", "E1_U3_S24"),
        ("after_training", "E1_U3_S24"),
    ]


@each_front_end
def test_each_hook_is_called_for_all_callbacks_before_the_next_hook(front_end: Any, tmp_path: Path) -> None:
    first, second = Recorder(), Recorder()
    second.calls = first.calls
    train(front_end, tmp_path, [first, second], [{}], updates_per_epoch=1)
    assert [call[0] for call in first.calls] == [hook for hook in HOOKS if hook != "at_eval" for _ in range(2)]


@each_front_end
def test_batch_and_losses_reach_the_hooks(front_end: Any, tmp_path: Path) -> None:
    seen = []

    class Mine(Recorder):
        def track_after_accumulation_step(self, *, batch: Any, losses: Any, **_: Any) -> None:
            seen.append((batch, losses))

    with front_end.Run(tmp_path, [Mine()]) as run:
        run.step({}, batch="a batch", losses={"total": 1.0})
    assert seen == [("a batch", {"total": 1.0})]


@each_front_end
def test_a_list_of_dicts_is_that_many_accumulation_steps(front_end: Any, tmp_path: Path) -> None:
    recorder = Recorder()
    steps = losses(front_end, 1, 2, 3, 4, 5, 6)
    config = every(1, reduce=["mean", "last"])
    together = train(front_end, tmp_path / "a", [recorder, config], [steps[:3], steps[3:]], accumulation_steps=2)
    apart = train(front_end, tmp_path / "b", [config], steps, accumulation_steps=2)
    assert together.log_writer.log_entries == apart.log_writer.log_entries
    assert logged(tmp_path / "a", "loss/mean/U1") == [(1, 1.5), (2, 3.5), (3, 5.5)]
    numbers = [call[1:3] for call in recorder.calls if call[0] == "track_after_accumulation_step"]
    assert numbers == [(f"E0_U{update}_S{update}", step) for update in range(3) for step in range(2)]


# ---------------------------------------------------------------------- one callback fails


@pytest.mark.parametrize("hook", ["after_update", "after_epoch", "after_training"])
@each_front_end
def test_a_callback_that_fails_at_a_periodic_hook_costs_the_others_nothing(
    front_end: Any, hook: str, tmp_path: Path
) -> None:
    configs = [Recorder([hook], "the first"), every(1), {"every_n_epochs": 1, "keys": ["loss"]}, every(10)]
    second = Recorder([hook], "the second")
    run = front_end.Run(tmp_path, [*configs, second], updates_per_epoch=1)
    run.start()
    with pytest.raises(OSError, match="the first"):  # noqa: PT012
        run.step({"loss": 1.0})
        run.finish()
    if hook != "after_training":
        assert run.log_writer.disk.wait()
        assert [json.loads(line)["loss/E1"] for line in lines(tmp_path)] == [1.0]
        with pytest.raises(OSError, match="the first"):
            run.step({"loss": 3.0})
        run.finish()
        assert logged(tmp_path, "loss/U1") == logged(tmp_path, "loss/E1") == [(1, 1.0), (2, 3.0)]
        assert logged(tmp_path, "loss/U10") == [(2, 2.0)]
    else:
        assert run.log_writer.log_entries == [
            {"epoch": 1, "update": 1, "sample": 1, "loss/U1": 1.0, "loss/E1": 1.0, "loss/U10": 1.0}
        ]
        assert read_run(tmp_path).entries == run.log_writer.log_entries
    assert sum(call[0] == hook for call in second.calls) == (1 if hook == "after_training" else 2)


@each_front_end
def test_a_callback_that_cannot_save_costs_the_others_nothing(front_end: Any, tmp_path: Path) -> None:
    (tmp_path / "update_outputs").write_text("in the way")
    configs = [every(1, save_output=True, keys=["a"]), every(1, keys=["b"])]
    run = front_end.Run(tmp_path, configs)
    run.start()
    for n in (1.0, 2.0):
        run.step({"a": n, "b": n})
    with pytest.warns(
        RuntimeWarning, match=r"did not take .*update_outputs.* 2 files \(update_outputs/U1/E0_U1_S1.safeten"
    ):
        run.finish()
    assert logged(tmp_path, "a/U1") == logged(tmp_path, "b/U1") == [(1, 1.0), (2, 2.0)]


@each_front_end
def test_a_step_that_one_callback_refuses_is_counted_by_none(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [every(3), every(3, keys=["norm"])]) as run:
        run.step({"loss": 1.0, "norm": 1.0})
        with pytest.raises(MissingKeyError, match="'norm'"):
            run.step({"loss": 100.0})
        run.step({"loss": 2.0, "norm": 2.0})
        run.step({"loss": 3.0, "norm": 3.0})
    assert logged(tmp_path, "loss/U3") == logged(tmp_path, "norm/U3") == [(3, 2.0)]


@each_front_end
def test_a_step_counted_twice_is_refused_and_changes_nothing(front_end: Any) -> None:
    counter = UpdateCounter()
    callback = tracker(front_end, write_nothing(), **every(2))
    callback.track_after_accumulation_step(update_counter=counter, update_outputs={"loss": 1.0})
    with pytest.raises(HookOrderError, match="came after step 0 after 0 updates"):
        callback.track_after_accumulation_step(update_counter=counter, update_outputs={"loss": 2.0})
    assert callback.tracked_values == {"loss": [1.0]}
