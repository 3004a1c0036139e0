"""A run in one line: every scalar, or the keys that are named, beside whatever configs there are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import yaml
from hook_cases import FRONT_ENDS, each_front_end

import noether_jax
import noether_jax.flax
import noether_jax.optax
import noether_torch
from noether_core import MissingKeyError, NoetherError, UpdateOutputError, read_run
from noether_core.callbacks.build import read_callbacks
from noether_core.scalars import is_scalar

START = {"every_n_updates": 50, "scalars": True}


def array(front_end: Any, value: Any, dtype: str = "float32") -> Any:
    return jnp.asarray(value, dtype) if front_end is noether_jax else torch.tensor(value, dtype=getattr(torch, dtype))


def entries_of(given: list[Any]) -> list[dict[str, Any]]:
    return [each.model_dump(exclude_unset=True) for each in given]


LOSS, ACC = {"every_n_updates": 50, "keys": ["loss"]}, {"every_n_updates": 50, "keys": ["loss", "acc"]}
OTHER = {"every_n_epochs": 1, "keys": ["field"]}


@pytest.mark.parametrize(
    ("arguments", "named", "wanted"),
    [
        ((), {}, [START]),
        ((), {"every": 10}, [{**START, "every_n_updates": 10}]),
        ((), {"log_as": "train/{key}"}, [{**START, "log_as": "train/{key}"}]),
        (("loss",), {}, [LOSS]),
        ((["loss", "acc"],), {}, [ACC]),
        ((("loss", "acc"),), {}, [ACC]),
        (("loss",), {"every": 10}, [{"every_n_updates": 10, "keys": ["loss"]}]),
        (("",), {}, [{"every_n_updates": 50, "keys": [""]}]),
        ((["a.yaml"],), {}, [{"every_n_updates": 50, "keys": ["a.yaml"]}]),
        (([OTHER],), {}, [OTHER]),
        (([],), {}, []),
        ((), {"callbacks": []}, []),
        ((), {"callbacks": [OTHER]}, [OTHER]),
        ((["loss", OTHER, "acc"],), {}, [ACC, OTHER]),
        (("loss",), {"callbacks": [OTHER], "every": 5}, [{"every_n_updates": 5, "keys": ["loss"]}, OTHER]),
        (([OTHER],), {"callbacks": [LOSS]}, [OTHER, LOSS]),
    ],
)
def test_the_arguments_say_what_is_tracked(arguments: Any, named: Any, wanted: list[dict[str, Any]]) -> None:
    assert entries_of(read_callbacks(*arguments, **named)) == wanted


def test_a_file_is_a_path_or_ends_as_yaml(tmp_path: Path) -> None:
    for file in (tmp_path / "a.yaml", tmp_path / "a.yml", tmp_path / "config"):
        file.write_text(yaml.safe_dump({"callbacks": [OTHER]}), encoding="utf-8")
        assert entries_of(read_callbacks(file)) == entries_of(read_callbacks(callbacks=str(file))) == [OTHER]
        assert entries_of(read_callbacks("loss", str(file))) == [LOSS, OTHER]
    assert entries_of(read_callbacks(str(tmp_path / "a.yaml"))) == [OTHER]
    assert entries_of(read_callbacks(str(tmp_path / "a.yml"))) == [OTHER]
    assert entries_of(read_callbacks(str(tmp_path / "config"))) == [{**LOSS, "keys": [str(tmp_path / "config")]}]


@pytest.mark.parametrize(
    ("arguments", "named", "message"),
    [
        ((5,), {}, "got 5 as its keys; expected the name of an update output"),
        (({"keys": ["a"]},), {}, "a list of names, a list of configs"),
        ((), {"every": 0}, "every=0; expected an int of at least 1"),
        (("loss",), {"every": True}, "every=True"),
        ((), {"callbacks": [OTHER], "every": 10}, "every=10.* no keys beside its callbacks; .*every_n_updates: 10"),
        ((), {"callbacks": [OTHER], "log_as": "a/{key}"}, r"log_as='a/\{key\}'.* log_as: 'a/"),
        ((["loss", OTHER, 5],), {}, r"callbacks\[1\] is int 5"),
        ((), {"log_as": "train"}, r"no \{key\}.*scalars=True.*'train/\{key\}'"),
    ],
)
def test_what_cannot_be_is_refused(arguments: Any, named: Any, message: str) -> None:
    with pytest.raises((NoetherError, ValueError), match=message):
        read_callbacks(*arguments, **named)


@each_front_end
def test_every_scalar_is_tracked_from_when_it_comes(
    front_end: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with front_end.Run(tmp_path) as run, caplog.at_level(logging.WARNING):
        for step in range(100):
            outputs = {
                "loss": array(front_end, step),
                "one": array(front_end, [[step]]),
                "count": array(front_end, step, "int32"),
                "deep": {"python": step / 4, "numpy": np.float64(step)},
                "field": array(front_end, [1.0, 2.0]),
                "text": "no number",
                "none": None,
                "complex": 1j,
            }
            run.step({**outputs, "late": step} if step >= 70 else outputs)
    first, second = read_run(tmp_path).entries
    names = ["loss/U50", "one/U50", "count/U50", "deep/python/U50", "deep/numpy/U50"]
    assert list(first) == ["epoch", "update", "sample", *names]
    assert list(second) == [*first, "late/U50"]
    assert [second[name] for name in (*names, "late/U50")] == [74.5, 74.5, 74.5, 18.625, 74.5, 84.5]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "'field' (of shape (2,)), 'text' (str), 'complex' (complex)" in told[0]
    entry = yaml.safe_load(told[0].partition("name it: ")[2])
    assert entry == {"scalars": True, "keys": ["field"], "every_n_updates": 50}  # the advice can be followed
    with front_end.Run(tmp_path / "named", [entry]) as run:
        run.step(outputs)
    assert read_run(tmp_path / "named").entries[0]["field/U50"] == 1.5


@each_front_end
def test_a_value_is_judged_by_its_shape_at_each_step(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, every=4) as run:
        for value in (1.0, [2.0, 3.0], [4.0], [[5.0, 6.0]]):
            run.step({"v": array(front_end, value), "n": 1})
    assert read_run(tmp_path).entries[0]["v/U4"] == 2.5


@each_front_end
def test_outputs_without_a_scalar_are_warned_about(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path) as run, pytest.warns(UserWarning, match="single number, so there is nothing to log"):
        run.step({"field": array(front_end, [1.0, 2.0])})


@each_front_end
def test_two_outputs_of_one_key_are_refused(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path) as run, pytest.raises(UpdateOutputError, match="flatten to the key 'a/b'"):
        run.step({"a": {"b": 1}, "a/b": 2})


@each_front_end
@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        ("los", "'los' is not among.*Did you mean 'loss'"),
        (["loss", "acuracy"], "'acuracy' is not among.*Did you mean 'accuracy'"),
        ("grad", r"'grad' is not among.*There are 'grad/norm': .* patterns: \['grad/'\]"),
    ],
)
def test_a_key_that_is_not_there_is_named_with_the_closest(
    front_end: Any, keys: Any, hint: str, tmp_path: Path
) -> None:
    with front_end.Run(tmp_path, keys) as run, pytest.raises(MissingKeyError, match=hint):
        run.step({"loss": 1.0, "accuracy": 0.5, "grad": {"norm": 2.0}})


def test_a_tracer_is_refused_and_not_left_alone(tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path) as run, pytest.raises(UpdateOutputError, match="is a tracer"):
        jax.jit(lambda x: run.step({"loss": x}))(1.0)


STEPS = [
    {"loss": np.float32(n / 3), "field": np.arange(n, n + 3, dtype="float32"), "count": np.int32(n)} for n in range(7)
]


def fused(path: Path) -> None:
    with noether_jax.Run(path, every=3, log_as="train/{key}") as run:
        tracked = run.init(STEPS[0])
        step = jax.jit(run.track)
        for outputs in STEPS:
            tracked = run.step(step(tracked, outputs))


def scanned(path: Path) -> None:
    with noether_jax.Run(path, every=3, log_as="train/{key}") as run:
        tracked = run.init(STEPS[0], steps_per_call=7)
        stacked = jax.tree.map(lambda *each: jnp.stack(each), *STEPS)
        step = jax.jit(lambda tracked, outputs: jax.lax.scan(lambda c, o: (run.track(c, o), None), tracked, outputs)[0])
        run.step(step(tracked, stacked), steps=7)


def in_optax(path: Path) -> None:
    with noether_jax.Run(path, every=3, log_as="train/{key}") as run:
        optimizer = optax.chain(noether_jax.optax.record_outputs(run, STEPS[0]), optax.sgd(0.1))
        state = optimizer.init(jnp.zeros(2))
        update = jax.jit(lambda state, outputs: optimizer.update(jnp.ones(2), state, update_outputs=outputs)[1])
        for outputs in STEPS:
            state = run.step(update(state, outputs))


def as_steps(path: Path) -> None:
    with noether_torch.Run(path, every=3, log_as="train/{key}") as run:
        run.step({key: torch.tensor(np.stack([each[key] for each in STEPS])) for key in STEPS[0]}, steps=7)


def test_every_way_logs_the_same(tmp_path: Path) -> None:
    for front_end in FRONT_ENDS:
        with front_end.Run(tmp_path / front_end.__name__, every=3, log_as="train/{key}") as run:
            for outputs in STEPS:
                run.step({key: array(front_end, value.tolist(), value.dtype.name) for key, value in outputs.items()})
    for way in (fused, scanned, in_optax, as_steps):
        way(tmp_path / way.__name__)
    logs = {(path / "metrics" / "1.jsonl").read_bytes() for path in tmp_path.iterdir()}
    configs = {(path / "config.yaml").read_bytes() for path in tmp_path.iterdir()}
    assert len(logs) == len(configs) == 1
    assert list(read_run(tmp_path / "fused").entries[-1])[3:] == ["train/loss", "train/count"]


def test_a_fused_scalar_that_the_example_lacks_is_refused(tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path) as run:
        tracked = run.init({"loss": 0.5})
        with pytest.raises(UpdateOutputError, match="'late' was not in the example"):
            run.track(tracked, {"loss": 0.5, "late": 1.0})
        with pytest.raises(UpdateOutputError, match=r"'loss' is float32 of shape \(2,\), and was float"):
            run.track(tracked, {"loss": jnp.ones(2)})


def test_a_flax_metric_takes_every_scalar() -> None:
    metric = noether_jax.flax.TrackOutputs({"every_n_updates": 1, "scalars": True}, {"loss": 0.5, "field": np.ones(3)})
    metric.update(loss=0.5, field=np.ones(3))
    assert list(metric.compute()) == ["loss"]


@each_front_end
def test_an_evaluation_has_every_scalar_too(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, log_as="train/{key}") as run:
        run.step({"loss": 1.0})
        with run.evaluate():
            run.step({"loss": 2.0, "accuracy": array(front_end, 0.5), "field": array(front_end, [1.0, 2.0])})
    assert read_run(tmp_path).entries[0] | {"epoch": 0} == {
        "epoch": 0, "update": 1, "sample": 1, "eval/loss": 2.0, "eval/accuracy": 0.5, "train/loss": 1.0,
    }  # fmt: skip


@each_front_end
def test_a_run_resumes_under_another_name(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, every=4) as run:
        for step in range(6):
            run.step({"loss": float(step)})
        state = run.state_dict()
    run = front_end.Run(tmp_path, every=4, log_as="train/{key}", start={"update": 6})
    with pytest.warns(UserWarning, match="with other callbacks than start 1 had"):
        run.start()
    with pytest.warns(UserWarning, match="with other callbacks than start 1 had"):
        run.load_state_dict(state)
    for step in range(6, 8):
        run.step({"loss": float(step)})
    run.finish()
    series = read_run(tmp_path).series
    assert {name: [(point.update, point.value) for point in points] for name, points in series.items()} == {
        "loss/U4": [(4, 1.5)],
        "train/loss": [(8, 5.5)],
    }


@each_front_end
def test_a_run_explains_outputs_in_hand(front_end: Any, tmp_path: Path) -> None:
    run = front_end.Run(tmp_path, ["los"], callbacks=[{"scalars": True, "every_n_updates": 5, "log_as": "all/{key}"}])
    outputs = {"loss": array(front_end, 1.0), "field": array(front_end, [1.0, 2.0]), "name": "x", "n": [3]}
    found = run.explain(outputs)
    assert not found.is_clean
    text = repr(found)
    for part in ("Did you mean 'loss'?", "all/loss", "all/n", "scalars=True", "not tracked: field, name"):
        assert part in text
    assert front_end.Run(tmp_path, "loss").explain(outputs).is_clean
    assert "cannot be tracked" in repr(front_end.Run(tmp_path, "name").explain(outputs))


class Strange:
    """Have a shape that cannot be read, or compared."""

    def __init__(self, shape: Any) -> None:
        self.dtype, self._shape = np.dtype("float32"), shape

    @property
    def shape(self) -> Any:
        if self._shape is None:
            raise RuntimeError("no shape")
        return np.array(self._shape)


@each_front_end
def test_strange_outputs_are_left_alone(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, every=2) as run:
        for _ in range(2):
            run.step({"a": Strange(None), "b": Strange([2, 3]), "loss": array(front_end, 1.0), "c": object()})
    assert list(read_run(tmp_path).entries[0])[3:] == ["loss/U2"]


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (1, True), (True, True), (0.5, True), ([0.5], True), ([[1]], True), ([1, 2], False), ([], False), (["a"], False),
        (np.float16(1), True), (np.ones((1, 1)), True), (np.ones(2), False), (np.array(1j), False), (np.array("a"), False),
        (np.array(None), False), (np.array("2020", "M8"), False), (np.zeros(0), False), (np.array(1, ">f4"), True),
        (torch.ones(()), True), (torch.ones(1, dtype=torch.bool), True), (torch.ones(1, dtype=torch.bfloat16), True),
        (torch.ones(1, dtype=torch.complex64), False), (torch.ones(2), False), (torch.ones(1).to(torch.float8_e5m2), True),
        (jnp.ones(()), True), (jnp.ones((1, 1), jnp.bfloat16), True), (jnp.ones(3), False), (jnp.array(1j), False),
        (jax.random.key(0), False), (jax.ShapeDtypeStruct((), jnp.float32), True), (None, False), ("a", False),
        (object(), False), ({"a": 1}, False),
    ],
)  # fmt: skip
def test_what_is_a_scalar(value: Any, wanted: bool) -> None:
    assert is_scalar(value) is wanted
