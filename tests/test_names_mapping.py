"""What nothing else tells, a mapping says; what is left is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from name_cases import Shapes, dense, numbered, pairs, torch_linear, ways

from noether_core.errors import ConfigFileError
from noether_core.names import (
    UnmatchedNamesError,
    match,
)

# ---- mappings

TWO: Shapes = torch_linear("first", 6, 6) | torch_linear("second", 6, 6)
FRUIT: Shapes = dense("apple", 6, 6) | dense("pear", 6, 6)


@pytest.mark.parametrize("form", ["dict", "yaml", "json"])
def test_a_mapping_says_what_nothing_else_tells(form: str, tmp_path: Path) -> None:
    rules: Any = {"first": "pear", "second.weight": "apple/kernel"}
    if form != "dict":
        text = yaml.safe_dump(rules) if form == "yaml" else json.dumps(rules)
        (tmp_path / f"names.{form}").write_text(text, encoding="utf-8")
        rules = tmp_path / f"names.{form}"
    matching = match(TWO, FRUIT, rules).check()
    assert pairs(matching)["first.bias"] == ("pear/bias",)
    assert pairs(matching)["second.bias"] == ("apple/bias",)
    assert ways(matching) == {"mapping"}


def test_a_mapping_goes_before_names() -> None:
    matching = match(TWO, dense("first", 6, 6) | dense("second", 6, 6), {"first": "second"}).check()
    assert pairs(matching)["first.weight"] == ("second/kernel",)


def test_a_mapping_of_a_module_is_one_of_those_below_it() -> None:
    torch = {f"{side}.{name}": shape for side in ("left", "right") for name, shape in torch_linear("fc", 4, 4).items()}
    flax = {
        f"{side}/{path}": shape for side in ("tower_a", "tower_b") for path, shape in dense("Dense_0", 4, 4).items()
    }
    matching = match(torch, flax, {"left": "tower_b"}).check()
    assert pairs(matching)["left.fc.weight"] == ("tower_b/Dense_0/kernel",)


def test_a_mapping_gives_layouts_and_stacks_arrays() -> None:
    arrays = numbered({"fc.weight": (5, 24), "fc.bias": (5,), "table": (3, 2), "both": (4, 2)})
    flax: Shapes = {"a/kernel": (24, 5), "a/bias": (5,), "t": (2, 3), "top": (1, 2), "rest": (3, 2)}
    rules = {
        "fc.weight": {"path": "a/kernel", "channels": 3},
        "table": {"path": "t", "axes": [1, 0]},
        "both": ["top", "rest"],
    }
    matching = match({name: array.shape for name, array in arrays.items()}, flax, rules).check()
    stored = matching.to_flax(arrays)
    np.testing.assert_array_equal(stored["t"], arrays["table"].T)
    np.testing.assert_array_equal(stored["rest"], arrays["both"][1:])
    np.testing.assert_array_equal(
        stored["a/kernel"].reshape(8, 3, 5), arrays["fc.weight"].reshape(5, 3, 8).transpose(2, 1, 0)
    )
    for name, array in matching.to_canonical(stored).items():
        np.testing.assert_array_equal(array, arrays[name], name)


def test_a_mapped_matrix_of_no_layer_is_taken_as_inputs_by_outputs() -> None:
    arrays = numbered(torch_linear("fc", 3, 3) | torch_linear("head", 3, 2))
    flax: Shapes = {"b1": (3,), "b2": (2,), "w1": (3, 3), "w2": (3, 2)}
    rules = {"fc.weight": "w1", "fc.bias": "b1", "head.weight": "w2", "head.bias": "b2"}
    stored = match({name: array.shape for name, array in arrays.items()}, flax, rules).check().to_flax(arrays)
    np.testing.assert_array_equal(stored["w1"], arrays["fc.weight"].T)
    np.testing.assert_array_equal(stored["w2"], arrays["head.weight"].T)


def test_a_mapping_may_give_one_array_two_names() -> None:
    table = numbered({"embed.weight": (7, 4)})["embed.weight"]
    rules = {"embed.weight": "Embed_0/embedding", "head.weight": "Embed_0/embedding"}
    matching = match({"embed.weight": (7, 4), "head.weight": (7, 4)}, {"Embed_0/embedding": (7, 4)}, rules).check()
    stored = matching.to_flax({"embed.weight": table, "head.weight": table})
    np.testing.assert_array_equal(stored["Embed_0/embedding"], table)
    assert set(matching.to_canonical(stored)) == {"embed.weight", "head.weight"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"frist": "pear"}, "PyTorch has no 'frist'. Did you mean 'first'"),
        ({"first": "peer"}, "'first' is a module, peer is not. Did you mean 'pear'"),
        ({"first.weight": "pear/kernle"}, "Flax does not have. Did you mean 'pear/kernel'"),
        ({"first.weight": "pear/bias"}, r"'first.weight' has \(6, 6\)"),
        ({"first": 3}, "'first' has 3; expected a Flax path"),
        ({"first.weight": {"path": "pear/kernel", "channels": 0}}, "expected a Flax path"),
        ([1], "holds a list; expected PyTorch's names"),
    ],
)
def test_a_wrong_mapping_says_what_is_wrong(rules: Any, message: str) -> None:
    with pytest.raises(ConfigFileError, match=message):
        match(TWO, FRUIT, rules)


def test_a_mapping_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigFileError, match=r"nothing.yaml' cannot be read"):
        match(TWO, FRUIT, tmp_path / "nothing.yaml")


def test_what_is_left_is_asked_for_as_a_mapping_file() -> None:
    matching = match(TWO | {"odd\x1b[31m": (7,)}, FRUIT)
    with pytest.raises(UnmatchedNamesError, match="5 PyTorch arrays and 4 Flax arrays have no partner") as error:
        matching.check()
    assert "\x1b" not in str(error.value)
    asked = matching.mapping_to_complete()
    assert set(yaml.safe_load(asked)) == {*TWO, "odd\\x1b[31m"}
    assert "first.weight: ''  # (6, 6); of that size: apple/kernel, pear/kernel" in asked
