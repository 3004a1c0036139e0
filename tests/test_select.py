from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from noether_core import MissingKeyError, NoetherError, UpdateOutputError
from noether_core.select import Selector, flatten, require, select

AVAILABLE = ("grad/norm", "loss", "lr", "aux/loss", "Loss")


@pytest.mark.parametrize(
    ("keys", "patterns", "tracked"),
    [
        (["loss"], [], ("loss",)),
        (["lr", "loss"], [], ("lr", "loss")),
        ([], ["loss"], ("loss", "aux/loss")),
        (["lr"], ["loss"], ("lr", "loss", "aux/loss")),
        (["aux/loss"], ["loss", "grad"], ("aux/loss", "grad/norm", "loss")),
        ([], ["lr", "grad"], ("grad/norm", "lr")),
        ([], [""], AVAILABLE),
        (["lr"], [""], ("lr", "grad/norm", "loss", "aux/loss", "Loss")),
        ([], ["LOSS"], ()),
        ([], ["Loss"], ("Loss",)),
        (["los"], [], ()),
    ],
)
def test_exact_keys_come_in_the_configs_order_then_matches_in_the_dicts(
    keys: list[str], patterns: list[str], tracked: tuple[str, ...]
) -> None:
    assert select(keys, patterns, AVAILABLE).tracked == tracked


def test_a_key_that_is_named_and_matched_several_times_is_tracked_once() -> None:
    assert select(["loss", "lr", "loss"], ["lo", "ss", "loss", "ss"], ["a_loss", "lr", "loss"]).tracked == (
        "loss",
        "lr",
        "a_loss",
    )


@pytest.mark.parametrize(
    "pattern", [".", "l.ss", "^loss", "loss$", "l*", "[loss]", "(loss)", "lo?ss", "a|b", "\\w", "%"]
)
def test_a_pattern_is_literal(pattern: str) -> None:
    assert select([], [pattern], ["loss", "a", "b", "x"]).tracked == ()
    assert select([], [pattern], ["loss", f"a {pattern} b", pattern]).tracked == (f"a {pattern} b", pattern)


def test_an_exact_key_matches_no_more_than_itself() -> None:
    selection = select(["l.ss", "Loss", "los"], [], ["loss", "losses"])
    assert selection.tracked == ()
    assert selection.missing == ("l.ss", "Loss", "los")


def test_missing_keys_are_listed_once_and_patterns_are_never_missing() -> None:
    selection = select(["b", "loss", "a", "b"], ["none"], ["loss"])
    assert selection.missing == ("b", "a")
    assert selection.matches == {"none": ()}


def test_matches_list_each_patterns_keys_named_ones_included() -> None:
    assert select(["loss"], ["oss", "l"], ["lr", "loss"]).matches == {"oss": ("loss",), "l": ("lr", "loss")}


short = st.text("aAb./*", max_size=4)


@given(st.lists(short, max_size=5), st.lists(short, max_size=3), st.lists(short, max_size=8, unique=True))
def test_a_selection_is_what_its_definition_says(keys: list[str], patterns: list[str], available: list[str]) -> None:
    tracked: list[str] = []
    for key in keys:
        if key in available and key not in tracked:
            tracked.append(key)
    for key in available:
        contained = {key[start:end] for start in range(len(key) + 1) for end in range(start, len(key) + 1)}
        if contained & set(patterns) and key not in tracked:
            tracked.append(key)
    selection = select(keys, patterns, available)
    assert list(selection.tracked) == tracked
    assert set(selection.missing) == set(keys) - set(available)
    assert selection == select(keys, patterns, tuple(available))


# ---------------------------------------------------------------------- flatten


def test_nested_dicts_are_joined_by_slashes_in_their_order() -> None:
    outputs = {"z": 1, "layer": {"1": {"mean": 2, "std": 3}, "0": MappingProxyType({"mean": 4})}, "a": 5, "empty": {}}
    assert list(flatten(outputs).items()) == [
        ("z", 1),
        ("layer/1/mean", 2),
        ("layer/1/std", 3),
        ("layer/0/mean", 4),
        ("a", 5),
    ]


def test_none_is_left_out_and_other_false_values_are_not() -> None:
    assert flatten({"a": None, "b": {"c": None, "d": 0}, "e": False, "f": ""}) == {"b/d": 0, "e": False, "f": ""}


def test_flattening_changes_nothing_and_copies_no_value() -> None:
    value, inner = object(), {"b": 1}
    outputs = {"a": value, "inner": inner}
    assert flatten(outputs)["a"] is value
    assert outputs == {"a": value, "inner": {"b": 1}}


nested = st.dictionaries(
    st.text("ab", max_size=2),
    st.recursive(
        st.none() | st.integers(), lambda inner: st.dictionaries(st.text("ab", max_size=2), inner, max_size=3)
    ),
    max_size=4,
)


def leaves(outputs: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, int]]:
    for name, value in outputs.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        elif value is not None:
            yield "/".join((*path, name)), value


@given(nested)
def test_flat_outputs_are_the_paths_to_the_leaves(outputs: dict[str, Any]) -> None:
    assert list(flatten(outputs).items()) == list(leaves(outputs))


@pytest.mark.parametrize(
    "outputs",
    [{"a/b": 1, "a": {"b": 2}}, {"a": {"b": 2}, "a/b": 1}, {"a": {"b/c": 1, "b": {"c": 2}}, "x": 3}],
)
def test_two_outputs_that_flatten_to_one_key_are_refused(outputs: dict[str, Any]) -> None:
    with pytest.raises(UpdateOutputError, match=r"flatten to the key 'a/b(/c)?'; rename one of them"):
        flatten(outputs)


def test_an_output_of_none_collides_with_nothing() -> None:
    assert flatten({"a/b": None, "a": {"b": 2}}) == {"a/b": 2}
    assert flatten({"a/b": 1, "a": {"b": None}}) == {"a/b": 1}


@pytest.mark.parametrize("key", [3, None, ("a", "b"), b"loss"])
def test_a_key_that_is_no_string_is_spelled_as_one(key: Any) -> None:
    assert flatten({"loss": 1.0, key: 2.0}) == {"loss": 1.0, str(key): 2.0}
    assert flatten({"outer": {"inner": {key: 2.0}}}) == {f"outer/inner/{key}": 2.0}
    with pytest.raises(UpdateOutputError, match="flatten to the key"):
        flatten({key: 1.0, str(key): 2.0})


@pytest.mark.parametrize("outputs", [3, "loss", [("loss", 1.0)], None, {"loss"}, ({"loss": 1.0},)])
def test_what_is_no_dict_is_refused_with_its_type(outputs: Any) -> None:
    with pytest.raises(UpdateOutputError, match=rf"update_outputs is {type(outputs).__name__}; expected a dict"):
        flatten(outputs)


# ---------------------------------------------------------------------- require


def test_a_typo_names_the_closest_key_and_lists_what_was_there() -> None:
    available = ("pressure_error", "loss", "lr")
    with pytest.raises(MissingKeyError) as caught:
        require(select(["presure_error"], [], available), available)
    message = str(caught.value)
    assert "key 'presure_error' is not among the update outputs" in message
    assert "which have 'pressure_error', 'loss', 'lr'." in message
    assert "Did you mean 'pressure_error'?" in message
    assert "missing: skip" in message
    assert isinstance(caught.value, NoetherError)
    assert isinstance(caught.value, KeyError)


def test_another_case_is_the_closest_key() -> None:
    with pytest.raises(MissingKeyError, match="Did you mean 'loss'"):
        require(select(["LOSS"], [], ["loss", "lr"]), ["loss", "lr"])


def test_nothing_close_suggests_nothing() -> None:
    with pytest.raises(MissingKeyError) as caught:
        require(select(["temperature"], [], ["x", "y"]), ["x", "y"])
    assert "'x', 'y'" in str(caught.value)
    assert "Did you mean" not in str(caught.value)


def test_several_missing_keys_are_all_named_and_a_long_list_is_cut() -> None:
    available = [f"out{number}" for number in range(30)]
    with pytest.raises(MissingKeyError) as caught:
        require(select(["loss", "out3", "lr"], [], available), available)
    message = str(caught.value)
    assert "keys 'loss', 'lr' are not among" in message
    assert "'out19' and 10 more" in message
    assert "'out20'" not in message


def test_no_outputs_at_all_are_said_to_be_none() -> None:
    with pytest.raises(MissingKeyError, match="which have none"):
        require(select(["loss"], [], []), [])


def test_nothing_is_raised_when_nothing_is_missing() -> None:
    require(select(["loss"], ["absent"], ["loss"]), ["loss"])


# ---------------------------------------------------------------------- step after step


def test_a_selector_finds_what_select_does_whatever_came_before() -> None:
    selector = Selector(["loss"], ["grad", "none"])
    steps: list[Mapping[str, Any]] = [
        {"loss": 1.0, "grad/a": 2},
        {"loss": 1.0, "grad/a": {"b": 2, "c": None}},  # the same keys, and no longer flat
        {"loss": None, "grad/a": 2},
        MappingProxyType({"loss": 1.0, "grad/a": 2}),
        {"grad/a": 2, "loss": 1.0},
        {},
    ]
    for outputs in [*steps, *reversed(steps)]:
        flat, selection = selector(outputs)
        assert dict(flat) == dict(flatten(outputs))
        assert selection == select(["loss"], ["grad", "none"], list(flat))
        assert selection.matched == ({"grad"} if any("grad" in key for key in flat) else set())
    assert selector(steps[0])[1] is selector(dict(steps[0]))[1]
    assert selector({"loss": 1.0, 3: 2.0})[1].tracked == ("loss",)
