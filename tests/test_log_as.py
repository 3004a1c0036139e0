"""Names by `log_as`: what a template may be, what it gives, and that two callbacks with one name say so when they begin."""

from __future__ import annotations

import re
import string
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import yaml
from hook_cases import FRONT_ENDS, each_front_end
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import noether_jax
from noether_core import DuplicateKeyError, TrackAdditionalOutputsCallbackConfig, read_run
from noether_core.config import (
    LearningRateCallbackConfig,
    OnlineLossCallbackConfig,
    ThroughputCallbackConfig,
    check_together,
    load_callbacks,
    parse_callback,
)
from noether_core.parity import differing_files

Config = TrackAdditionalOutputsCallbackConfig
LOSS: dict[str, Any] = {"every_n_updates": 10, "keys": ["loss"]}

# ------------------------------------------------------------------ templates


@pytest.mark.parametrize(
    ("template", "fields", "name"),
    [
        ("train/{key}", {}, "train/loss"),
        ("{key}", {}, "loss"),
        ("{key}/{interval}", {}, "loss/U10"),
        ("{interval}: {key}", {}, "U10: loss"),
        ("the loss", {}, "the loss"),
        ("{{{key}}}", {}, "{loss}"),
        ("{reduction}{key}", {}, "meanloss"),
        ("{key}/{reduction}", {"reduce": ["mean", "std"]}, "loss/mean"),
        ("train/{key}", {"reduce": ["std", "stack"], "save_output": True}, "train/loss"),
        ("train/{key}", {"reduce": {"loss": "max", "acc": ["min"]}}, "train/loss"),
    ],
)
def test_a_template_gives_the_name(template: str, fields: dict[str, Any], name: str) -> None:
    assert next(iter(Config(**LOSS, **fields, log_as=template).log_keys("loss")))[0] == name


@pytest.mark.parametrize(
    ("template", "fields", "message"),
    [
        ("", {}, "at least 1 character"),
        ("train/{kye}", {}, r"\{kye\} is none of its fields: \{key\}, \{reduction\}, \{interval\}. Did you mean 'key'"),
        ("{}", {}, "none of its fields"),
        ("{0}", {}, "none of its fields"),
        ("{key.__class__}", {}, r"without an attribute.* write \{key\}"),
        ("{key[0]}", {}, r"without an attribute.* write \{key\}"),
        ("{key!r}", {}, r"a conversion or a format: write \{key\}"),
        ("{key:>10}", {}, r"a conversion or a format: write \{key\}"),
        ("{key:{interval}}", {}, r"a conversion or a format: write \{key\}"),
        ("{key", {}, "cannot be read"),
        ("key}", {}, "cannot be read"),
        ("{key}{key}", {}, "twice"),
        ("x" * 1001, {}, "at most 1000"),
        ("loss", {"keys": ["loss", "acc"]}, r"no \{key\}.*write log_as: 'loss/\{key\}'"),
        ("loss", {"patterns": ["a"]}, r"no \{key\}.*write log_as: 'loss/\{key\}'"),
        ("loss", {"scalars": True}, r"no \{key\}.*write log_as: 'loss/\{key\}'"),
        ("a/{key}", {"reduce": ["mean", "std"]}, r"no \{reduction\}.*write log_as: 'a/\{key\}/\{reduction\}'"),
        ("{key}/b", {"reduce": {"x": ["min", "max"]}}, r"no \{reduction\}.*write log_as: '\{key\}/\{reduction\}/b'"),
        (5, {}, "string"),
        ({"key": None}, {}, 'quoted: log_as: "{key}"'),
    ],
)
def test_a_bad_template_is_refused_with_what_to_write(template: Any, fields: dict[str, Any], message: str) -> None:
    wrong = {**LOSS, **fields, "log_as": template}
    with pytest.raises(ValidationError, match=message) as caught:
        Config(**wrong)
    if advice := re.search(r"write log_as: '(.*?)' ", f"{caught.value} "):  # it can be followed
        Config(**{**wrong, "log_as": advice[1]})


TEMPLATES = st.lists(
    st.sampled_from(
        ["{key}", "{reduction}", "{interval}", "{", "}", "{{", "}}", "{key.x}", "{key!s}", "a", "/", "é", ""]
    )
    | st.text(string.printable, max_size=3),
    max_size=6,
).map("".join)
KEYS = st.lists(st.text(max_size=5), min_size=1, max_size=4, unique=True)
REDUCTIONS = st.lists(
    st.sampled_from(["mean", "last", "sum", "min", "max", "std", "var", "count"]), min_size=1, unique=True
)


@given(TEMPLATES, KEYS, REDUCTIONS)
def test_any_template_gives_distinct_names_or_is_refused(template: str, keys: list[str], reductions: list[str]) -> None:
    try:
        config = Config(every_n_updates=3, keys=keys, reduce=reductions, log_as=template)
    except ValidationError:
        with pytest.raises(ValidationError, match="log_as"):
            Config(every_n_updates=3, keys=keys, reduce=reductions, log_as=template)
        return
    names = [name for key in keys for name, _ in config.log_keys(key)]
    assert len(set(names)) == len(names) == len(keys) * len(reductions)
    for key in keys:  # Python's own formatting agrees
        for name, reduction in config.log_keys(key):
            assert name == template.format(key=key, reduction=reduction, interval="U3")
    assert config.naming.template.format(key="k", reduction="r", interval="i") == template.format(
        key="k", reduction="r", interval="i"
    )


# ------------------------------------------------------------------ what is logged

STEPS = [{"loss": np.float32(n / 3), "grad/norm": np.float32(np.nan if n == 4 else n)} for n in range(9)]


def given_to(front_end: Any, outputs: dict[str, Any]) -> dict[str, Any]:
    return outputs if front_end is noether_jax else {key: torch.tensor(value) for key, value in outputs.items()}


def entries(front_end: Any, path: Path, configs: list[dict[str, Any]], **arguments: Any) -> list[dict[str, Any]]:
    with front_end.Run(path, configs, **arguments) as run:
        for outputs in STEPS:
            run.step(given_to(front_end, outputs))
    return read_run(path).entries


@settings(max_examples=15)
@given(st.data())
def test_both_front_ends_and_a_compiled_step_log_the_same(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    literal = st.sampled_from(["", "train/", "a", "{{", "%", " "])
    parts = data.draw(st.permutations(["{key}", "{reduction}", "{interval}"]))
    template = "".join(data.draw(literal) + part for part in parts) + data.draw(literal)
    config = {"every_n_updates": 4, "patterns": ["o"], "reduce": ["mean", "max"], "log_as": template}
    config["save_output"] = True
    path = tmp_path_factory.mktemp("runs")
    for front_end in FRONT_ENDS:
        entries(front_end, path / front_end.__name__, [config])
    with noether_jax.Run(path / "fused", [config]) as run:
        tracked, step = run.init(STEPS[0]), jax.jit(run.track)
        for outputs in STEPS:
            tracked = run.step(step(tracked, outputs))
    assert differing_files(path / "noether_jax", path / "noether_torch") == ([], 4)
    assert differing_files(path / "noether_jax", path / "fused") == ([], 4)
    named = [template.format(key="loss", reduction=each, interval="U4") for each in ("mean", "max")]
    assert read_run(path / "fused").entries[0].keys() >= {*named}


@each_front_end
def test_the_default_names_are_those_of_the_default_template(front_end: Any, tmp_path: Path) -> None:
    config = {"every_n_updates": 3, "patterns": [""], "reduce": ["mean", "std"], "nonfinite": "skip"}
    plain = entries(front_end, tmp_path / "a", [config])
    assert entries(front_end, tmp_path / "b", [{**config, "log_as": "{key}/{reduction}/{interval}"}]) == plain
    plain = entries(front_end, tmp_path / "c", [{**config, "reduce": "mean"}])
    assert entries(front_end, tmp_path / "d", [{**config, "reduce": "mean", "log_as": "{key}/{interval}"}]) == plain


@each_front_end
@pytest.mark.parametrize(
    ("template", "reduce", "name"),
    [
        ("train/{key}", "mean", "train/grad/norm/nonfinite"),
        ("{key} ({reduction})", ["mean"], "grad/norm (nonfinite)"),
        ("{reduction}/{key}/{interval}", ["mean", "max"], "nonfinite/grad/norm/U3"),
        ("{key}/{interval}/x", "max", "grad/norm/nonfinite/U3/x"),
    ],
)
def test_a_count_of_what_is_not_finite_has_its_reduction(
    front_end: Any, template: str, reduce: Any, name: str, tmp_path: Path
) -> None:
    config = {"every_n_updates": 3, "keys": ["grad/norm"], "nonfinite": "skip", "reduce": reduce, "log_as": template}
    found = entries(front_end, tmp_path, [config])
    assert [entry.get(name) for entry in found] == [None, 1, None]


@each_front_end
def test_saved_arrays_have_their_own_names(front_end: Any, tmp_path: Path) -> None:
    config = {"every_n_updates": 3, "keys": ["loss"], "save_output": True, "log_as": "train/{key}"}
    entries(front_end, tmp_path, [config])
    files = read_run(tmp_path).arrays
    assert [(file.interval, list(file.load())) for file in files] == [("U3", ["loss"])] * 3


@each_front_end
def test_an_evaluation_has_its_prefix_and_the_reduction_where_training_has_it(front_end: Any, tmp_path: Path) -> None:
    configs = [
        {**LOSS, "log_as": "train/{key}"},
        {**LOSS, "log_as": "train/{reduction} of {key}"},
        {**LOSS, "reduce": "std", "log_as": "spread/{key}"},
        {"kind": "OnlineLossCallback", "every_n_updates": 10, "log_as": "{key}"},
    ]
    with front_end.Run(tmp_path, configs) as run:
        run.step({"loss": 1.0}, losses=1.0)
        with run.evaluate("test"):
            run.step({"loss": 2.0}, losses=3.0)
            run.step({"loss": 4.0}, losses=3.0)
    assert read_run(tmp_path).entries[0] == {
        "epoch": 0, "update": 1, "sample": 1,
        "test/loss": 3.0, "test/loss/mean": 3.0, "test/loss/std": 1.0, "test/loss/online/total": 3.0,
        "train/loss": 1.0, "train/mean of loss": 1.0, "spread/loss": 0.0, "loss/online/total": 1.0,
    }  # fmt: skip


@each_front_end
def test_the_other_callbacks_take_a_template_and_a_watcher_takes_the_name(front_end: Any, tmp_path: Path) -> None:
    configs = [
        {**LOSS, "every_n_updates": 2, "log_as": "train/{key}"},
        {"kind": "ThroughputCallback", "every_n_updates": 2, "log_as": "speed/{key}"},
        {"kind": "LearningRateCallback", "every_n_updates": 2, "key": "lr", "log_as": "{key}"},
        LearningRateCallbackConfig(every_n_updates=2, source=lambda _: 0.5, log_as="source/{key}"),
        {"kind": "OnlineLossCallback", "every_n_updates": 2, "log_as": "online/{key}/{interval}"},
        {
            "kind": "BestMetricCallback",
            "every_n_updates": 2,
            "source_metric_key": "train/loss",
            "higher_is_better": False,
        },
    ]
    with front_end.Run(tmp_path, configs, effective_batch_size=1) as run:
        for step in range(4):
            run.step({"loss": 4.0 - step, "lr": 0.1}, losses=1.0, times={"data": 1.0})
    names = [
        "train/loss", "speed/profiling/samples_per_second", "speed/profiling/updates_per_second",
        "speed/profiling/data_wait_seconds", "speed/profiling/data_wait_share", "optim/lr", "source/optim/lr",
        "online/loss/online/total/U2", "train/loss/at_best/train/loss",
    ]  # fmt: skip
    assert [list(entry)[3:] for entry in read_run(tmp_path).entries] == [names] * 2


@pytest.mark.parametrize("kind", [OnlineLossCallbackConfig, LearningRateCallbackConfig, ThroughputCallbackConfig])
@pytest.mark.parametrize("template", ["x", "{key}/{reduction}", "{key!r}", ""])
def test_the_other_callbacks_refuse_bad_templates(kind: Any, template: str) -> None:
    with pytest.raises(ValidationError, match="log_as"):
        kind(every_n_updates=1, log_as=template)


# ------------------------------------------------------------------ two callbacks with one name

SAME = {
    "the same twice": ([LOSS, LOSS], "'loss/U10'"),
    "a key and a pattern": ([LOSS, {"every_n_updates": 10, "patterns": ["os"]}], "'loss/U10'"),
    "a pattern and a key": ([{"every_n_updates": 10, "patterns": ["os"]}, LOSS], "'loss/U10'"),
    "other intervals": ([{**LOSS, "log_as": "a"}, {**LOSS, "every_n_updates": 100, "log_as": "a"}], "'a'"),
    "another reduction's name": (
        [{**LOSS, "reduce": "std"}, {**LOSS, "keys": ["loss/std"], "log_as": "{key}/{interval}"}],
        "'loss/std/U10'",
    ),
    "a rate": (
        [{**LOSS, "keys": ["optim/lr"]}, {"kind": "LearningRateCallback", "every_n_updates": 10, "key": "lr"}],
        "'optim/lr/U10'",
    ),
    "losses": ([{"kind": "OnlineLossCallback", "every_n_updates": 10}] * 2, "'loss/online/{name}/U10'"),
    "rates of progress": ([{"kind": "ThroughputCallback", "every_n_updates": 10}] * 2, "'profiling/"),
    "what an entry has": ([{**LOSS, "log_as": "update"}], "'update'"),
    "a key that an entry has": ([{**LOSS, "keys": ["epoch"], "log_as": "{key}"}], "'epoch'"),
}


@each_front_end
@pytest.mark.parametrize("case", SAME)
def test_known_names_clash_when_the_run_is_made(front_end: Any, case: str, tmp_path: Path) -> None:
    configs, name = SAME[case]
    with pytest.raises(DuplicateKeyError) as caught:
        front_end.Run(tmp_path, configs, effective_batch_size=1)
    assert name in str(caught.value)
    followed(configs, str(caught.value))


def followed(configs: list[dict[str, Any]], message: str) -> None:
    """Follow the advice of a message for the last of the configs; the clash is gone."""
    line = re.search(r'log_as: ".*"', message)
    assert line is not None
    better = [*map(parse_callback, [*configs[:-1], {**configs[-1], **yaml.safe_load(line[0])}])]
    check_together(better)


LATE = {
    "two patterns": [{"every_n_updates": 10, "patterns": ["lo"]}, {"every_n_updates": 10, "patterns": ["ss"]}],
    "scalars and a pattern": [{"every_n_updates": 10, "scalars": True}, {"every_n_updates": 10, "patterns": ["ss"]}],
    "scalars and a key": [LOSS, {"every_n_updates": 10, "scalars": True}],
    "other intervals": [
        {"every_n_updates": 10, "scalars": True, "log_as": "{key}"},
        {"every_n_updates": 7, "patterns": ["ss"], "log_as": "{key}"},
    ],
    "a rate": [
        LearningRateCallbackConfig(every_n_updates=10, source=lambda _: 0.1, log_as="{key}"),
        {"every_n_updates": 10, "patterns": ["lr"], "log_as": "optim/{key}"},
    ],
    "one callback's own": [{"every_n_updates": 10, "patterns": ["loss"], "reduce": {"loss/std": "mean", "loss": "std"},
                            "log_as": "{key}"}, {"every_n_updates": 10, "patterns": ["s"], "log_as": "{key}"}],
    "what an entry has": [{"every_n_updates": 10, "scalars": True, "log_as": "{key}"}],
}  # fmt: skip
LATE_OUTPUTS = {"loss": np.float32(1), "lr": np.float32(0.1), "loss/std": np.float32(0)}


@each_front_end
@pytest.mark.parametrize("case", LATE)
def test_names_that_come_to_be_known_clash_at_the_first_step(front_end: Any, case: str, tmp_path: Path) -> None:
    outputs = {**LATE_OUTPUTS, "epoch": np.float32(1)} if case == "what an entry has" else LATE_OUTPUTS
    with front_end.Run(tmp_path, LATE[case]) as run:
        with pytest.raises(DuplicateKeyError, match='log_as: "other/'):
            run.step(given_to(front_end, outputs))
        assert run.counter.update == 0
    if front_end is noether_jax:
        run = front_end.Run(tmp_path / "fused", LATE[case])
        with pytest.raises(DuplicateKeyError, match='log_as: "other/'):
            run.init(outputs)


@each_front_end
def test_a_key_that_comes_later_clashes_when_it_comes(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, LATE["two patterns"]) as run:
        for _ in range(3):
            run.step({"lo": 1.0, "ss": 2.0})
        with pytest.raises(DuplicateKeyError, match="'loss/U10' would be logged twice"):
            run.step({"lo": 1.0, "ss": 2.0, "loss": 3.0})
    assert read_run(tmp_path).entries[0]["lo/U10"] == 1.0


def test_callbacks_that_log_nothing_or_other_names_go_together(tmp_path: Path) -> None:
    configs = [
        LOSS,
        {**LOSS, "log_output": False, "save_output": True},
        {**LOSS, "reduce": "std"},
        {**LOSS, "log_as": "b"},
    ]
    for front_end in FRONT_ENDS:
        found = entries(front_end, tmp_path / front_end.__name__, configs)
        assert list(found[0])[3:] == ["loss/U10", "loss/std/U10", "b"]


def test_an_id_is_advised_where_files_clash() -> None:
    saved = {**LOSS, "save_output": True, "log_output": False}
    with pytest.raises(Exception, match="would write the same files") as caught:
        check_together([*map(parse_callback, [saved, saved])])
    line = re.search(r"id: \w+", str(caught.value))
    assert line is not None
    check_together([*map(parse_callback, [saved, {**saved, **yaml.safe_load(line[0])}])])


def test_the_config_of_a_run_can_be_read_back(tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path, ["loss"], every=3, log_as="train/{key}") as run:
        run.step({"loss": 1.0})
    (config,) = load_callbacks(tmp_path / "config.yaml")
    assert config.model_dump(exclude_unset=True) == {"every_n_updates": 3, "keys": ["loss"], "log_as": "train/{key}"}
