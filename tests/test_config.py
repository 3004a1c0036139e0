from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from noether_core import ConfigFileError, Interval, TrackAdditionalOutputsCallbackConfig, load_callbacks
from noether_core.config.load import parse_callback

Config = TrackAdditionalOutputsCallbackConfig
LOSS: dict[str, Any] = {"every_n_updates": 1, "keys": ["loss"]}
INTERVALS = ("every_n_epochs", "every_n_updates", "every_n_samples")
REDUCTIONS = ("mean", "last", "sum", "min", "max", "std", "var", "count", "stack")


def write(path: Path, text: str) -> Path:
    file = path / "callbacks.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_defaults_are_those_that_the_readme_lists() -> None:
    assert Config(**LOSS).model_dump() == {
        "kind": None,
        "id": None,
        "every_n_epochs": None,
        "every_n_updates": 1,
        "every_n_samples": None,
        "batch_size": None,
        "name": "TrackAdditionalOutputsCallback",
        "keys": ["loss"],
        "patterns": None,
        "scalars": False,
        "reduce": "mean",
        "weight": None,
        "replicated": [],
        "verbose": False,
        "log_output": True,
        "log_as": None,
        "save_output": False,
        "missing": "error",
        "nonfinite": "propagate",
    }


@pytest.mark.parametrize(
    ("field", "interval"),
    [
        ("every_n_epochs", Interval("epoch", 3)),
        ("every_n_updates", Interval("update", 3)),
        ("every_n_samples", Interval("sample", 3)),
    ],
)
def test_the_one_field_that_is_set_is_the_interval(field: str, interval: Interval) -> None:
    assert Config(**{field: 3}, keys=["loss"]).interval == interval


@pytest.mark.parametrize("n", [0, 2, 3])
def test_none_or_several_intervals_are_refused(n: int) -> None:
    for start in range(3):
        fields = [INTERVALS[(start + at) % 3] for at in range(n)]
        with pytest.raises(ValidationError, match="set exactly one of every_n_epochs, every_n_updates"):
            Config(**dict.fromkeys(fields, 2), keys=["loss"])


@pytest.mark.parametrize("value", [0, -1, True, 1.0, "10"])
@pytest.mark.parametrize("field", [*INTERVALS, "batch_size"])
def test_a_count_is_an_int_of_at_least_one(field: str, value: Any) -> None:
    fields = {"keys": ["loss"], field: value, **({"every_n_updates": 1} if field == "batch_size" else {})}
    with pytest.raises(ValidationError, match=rf"(?s){field}\n  got {value!r}.*expected (at least 1|a valid integer)"):
        Config(**fields)


def test_a_config_cannot_be_changed() -> None:
    config = Config(**LOSS)
    with pytest.raises(ValidationError, match="frozen"):
        config.verbose = True  # type: ignore[misc]
    assert not config.verbose


@pytest.mark.parametrize("field", ["every_n_update", "key", "pattern", "save", "Keys"])
def test_an_unknown_field_is_refused_by_name(field: str) -> None:
    with pytest.raises(ValidationError, match=rf"{field}\n  '{field}' is no field of Track"):
        Config(**LOSS, **{field: 1})


@pytest.mark.parametrize(
    "kind",
    [
        {"kind": "noether.core.callbacks.TrackAdditionalOutputsCallback"},
        {"kind": "TrackAdditionalOutputsCallback"},
        {"kind": None},
        {"name": "TrackAdditionalOutputsCallback"},
        {},
    ],
)
def test_the_noether_kind_the_short_one_and_none_mean_the_same(kind: dict[str, Any]) -> None:
    config = parse_callback({**kind, **LOSS})
    assert config.model_dump(exclude={"kind"}) == Config(**LOSS).model_dump(exclude={"kind"})
    assert config.kind == kind.get("kind")


@pytest.mark.parametrize(
    "kind", ["noether.core.callbacks.BestCheckpointCallback", "tests.TrackAdditionalOutputsCallback", "Track"]
)
def test_another_kind_is_refused_and_the_known_one_named(kind: str) -> None:
    for build, error in ((parse_callback, ConfigFileError), (Config.model_validate, ValidationError)):
        with pytest.raises(error) as caught:
            build({**LOSS, "kind": kind})
        assert repr(kind) in str(caught.value)
        assert "'TrackAdditionalOutputsCallback'" in str(caught.value)


@pytest.mark.parametrize("empty", [{}, {"keys": []}, {"patterns": []}, {"keys": [], "patterns": []}])
def test_keys_or_patterns_must_name_something(empty: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="keys and patterns are both empty; name at least one"):
        Config(every_n_updates=1, **empty)


def test_an_empty_pattern_and_an_empty_key_are_allowed() -> None:
    assert Config(every_n_updates=1, patterns=[""]).patterns == [""]
    assert Config(every_n_updates=1, keys=["loss", ""]).log_key("", "mean") == "/U1"


# ---------------------------------------------------------------------- reduce

FORMS: list[tuple[Any, str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = [
    # reduce, a key, and its reductions, log keys and tensor names
    ("mean", "loss", ("mean",), ("loss/U1",), ("loss",)),
    ("last", "loss", ("last",), ("loss/U1",), ("loss",)),
    ("sum", "loss", ("sum",), ("loss/sum/U1",), ("loss",)),
    (["mean"], "loss", ("mean",), ("loss/U1",), ("loss",)),
    (["last"], "loss", ("last",), ("loss/U1",), ("loss",)),
    (["max"], "loss", ("max",), ("loss/max/U1",), ("loss",)),
    (["mean", "last"], "loss", ("mean", "last"), ("loss/mean/U1", "loss/last/U1"), ("loss/mean", "loss/last")),
    (["last", "mean"], "a/b", ("last", "mean"), ("a/b/last/U1", "a/b/mean/U1"), ("a/b/last", "a/b/mean")),
    ({"loss": "last"}, "loss", ("last",), ("loss/last/U1",), ("loss",)),
    ({"loss": "last"}, "lr", ("mean",), ("lr/mean/U1",), ("lr",)),
    ({"os": "last"}, "loss", ("last",), ("loss/last/U1",), ("loss",)),
    ({"os": "max", "loss": "last"}, "loss", ("last",), ("loss/last/U1",), ("loss",)),
    ({"ss": "min", "os": "max"}, "loss", ("min",), ("loss/min/U1",), ("loss",)),
    ({"LOSS": "max"}, "loss", ("mean",), ("loss/mean/U1",), ("loss",)),
    ({"l.ss": "max"}, "loss", ("mean",), ("loss/mean/U1",), ("loss",)),
    ({"": ["std", "var"]}, "x", ("std", "var"), ("x/std/U1", "x/var/U1"), ("x/std", "x/var")),
    ({"": "min", "x": ["sum", "last"]}, "x", ("sum", "last"), ("x/sum/U1", "x/last/U1"), ("x/sum", "x/last")),
]


@pytest.mark.parametrize(("form", "key", "reductions", "log_keys", "tensors"), FORMS)
def test_reduce_decides_the_reductions_and_the_names(
    form: Any, key: str, reductions: tuple[str, ...], log_keys: tuple[str, ...], tensors: tuple[str, ...]
) -> None:
    config = Config(**LOSS, reduce=form)
    found = config.reductions(key)
    assert found == reductions
    assert tuple(config.log_key(key, reduction) for reduction in found) == log_keys
    assert tuple(config.tensor_name(key, reduction) for reduction in found) == tensors


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_each_reduction_of_the_specification_is_known(reduction: str) -> None:
    assert Config(**LOSS, reduce=reduction, save_output=True).reductions("loss") == (reduction,)


@pytest.mark.parametrize("form", ["median", "Mean", None, 3, ["mean", "median"], {"loss": "median"}, {3: "mean"}])
def test_an_unknown_form_of_reduce_is_refused(form: Any) -> None:
    with pytest.raises(ValidationError, match="reduce"):
        Config(**LOSS, reduce=form)


@pytest.mark.parametrize("form", [["mean", "mean"], {"loss": ["last", "mean", "last"]}])
def test_a_reduction_named_twice_is_refused(form: Any) -> None:
    with pytest.raises(ValidationError, match="name each reduction once"):
        Config(**LOSS, reduce=form)


@pytest.mark.parametrize("form", [[], {"loss": []}])
def test_an_empty_list_of_reductions_is_refused(form: Any) -> None:
    with pytest.raises(ValidationError, match="an empty list of reductions; name at least one"):
        Config(**LOSS, reduce=form)


# ---------------------------------------------------------------------- YAML

TRAINER = """
trainer:
  kind: noether.training.trainers.Something
  max_epochs: 10
seed: &seed 3
callbacks:
  - kind: noether.core.callbacks.TrackAdditionalOutputsCallback
    every_n_updates: 10
    keys: [loss, lr]
    patterns: [_loss, grad/]
  - every_n_epochs: *seed
    patterns: [""]
    reduce: {loss: [mean, last], grad: last}
    id: säved
    save_output: true
model: {layers: [1, 2]}
"""


def test_the_callbacks_of_a_trainer_config_are_read_and_the_rest_left_alone(tmp_path: Path) -> None:
    file = write(tmp_path, TRAINER)
    assert load_callbacks(file) == [
        Config(
            kind="noether.core.callbacks.TrackAdditionalOutputsCallback",
            every_n_updates=10,
            keys=["loss", "lr"],
            patterns=["_loss", "grad/"],
        ),
        Config(
            every_n_epochs=3,
            patterns=[""],
            reduce={"loss": ["mean", "last"], "grad": "last"},
            id="säved",
            save_output=True,
        ),
    ]
    assert load_callbacks(str(file)) == load_callbacks(file)


def test_a_bare_list_is_read_too(tmp_path: Path) -> None:
    file = write(tmp_path, "- {every_n_updates: 1, keys: [loss]}\n- {every_n_samples: 8, patterns: [a]}\n")
    assert [str(config.interval) for config in load_callbacks(file)] == ["U1", "S8"]


def test_an_empty_list_has_no_callbacks(tmp_path: Path) -> None:
    assert load_callbacks(write(tmp_path, "callbacks: []")) == []


@pytest.mark.parametrize(
    ("text", "top"), [("", "NoneType"), ("callbacks:", "'callbacks'"), ("a: 1\nb: 2", "'a', 'b'"), ("hello", "str")]
)
def test_a_file_without_the_list_is_told_what_it_has(tmp_path: Path, text: str, top: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ConfigFileError) as caught:
        load_callbacks(file)
    assert f"{str(file)!r} has no `callbacks:` list (its top level: {top}); add one" in str(caught.value)


def test_a_wrong_entry_is_named_by_its_place(tmp_path: Path) -> None:
    file = write(tmp_path, "callbacks:\n- {every_n_updates: 1, keys: [loss]}\n- loss\n")
    with pytest.raises(
        ConfigFileError, match=r"callbacks\[1\] in .*callbacks\.yaml' is str 'loss'; expected a mapping"
    ):
        load_callbacks(file)


# ---------------------------------------------------------------------- round trips

names = st.text(min_size=1, max_size=8)
reductions = st.sampled_from(REDUCTIONS)
one_or_more = reductions | st.lists(reductions, min_size=1, max_size=3, unique=True)


def asks_for(reduction: str, reduce: object) -> bool:
    if isinstance(reduce, dict):
        return any(asks_for(reduction, wanted) for wanted in reduce.values())
    return reduction == reduce or (isinstance(reduce, list) and reduction in reduce)


def config_of(interval: str, n: int, outputs: dict[str, bool], fields: dict[str, object]) -> Config:
    if asks_for("stack", fields.get("reduce")):  # which needs save_output
        outputs = outputs | {"save_output": True}
    return Config(**{interval: n}, **outputs, **fields)


configs = st.builds(
    config_of,
    st.sampled_from(INTERVALS),
    st.integers(1, 10**9),
    st.sampled_from([{}, {"save_output": True}, {"save_output": True, "log_output": False}]),
    st.fixed_dictionaries(
        {"keys": st.lists(names, min_size=1, max_size=3)},
        optional={
            "kind": st.sampled_from(["TrackAdditionalOutputsCallback", None]),
            "id": st.text("abc-_.ü", min_size=1, max_size=6).filter(lambda id_: id_ not in {".", ".."}),
            "patterns": st.none() | st.lists(st.text(max_size=4), max_size=3),
            "reduce": one_or_more | st.dictionaries(names, one_or_more, max_size=3),
            "weight": st.none() | names,
            "batch_size": st.none() | st.integers(1, 100),
            "verbose": st.booleans(),
            "missing": st.sampled_from(["error", "warn", "skip"]),
            "nonfinite": st.sampled_from(["propagate", "skip", "raise"]),
        },
    ),
)


@given(configs)
def test_a_config_comes_back_from_its_dump(config: Config) -> None:
    assert Config.model_validate(config.model_dump()) == config
    assert Config.model_validate(config.model_dump(exclude_unset=True)) == config
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert Config.model_validate(yaml.safe_load(yaml.safe_dump(config.model_dump()))) == config
