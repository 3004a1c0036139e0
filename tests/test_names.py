"""Names of two models are matched, by a mapping, name, values, shape or order; what is doubtful is left, and asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from noether_core.errors import ConfigFileError
from noether_core.names import (
    Layer,
    Matching,
    UnmatchedNamesError,
    WeightsError,
    align,
    canonical_names,
    fingerprint,
    images_to_flax,
    images_to_torch,
    match,
)
from noether_core.names.layout import (
    Layout,
    channels_first,
    contraction,
    convolution,
    flattened,
    linear,
    transposed_convolution,
)

Shapes = dict[str, tuple[int, ...]]


def pairs(matching: Matching) -> dict[str, tuple[str, ...]]:
    return {entry.name: entry.paths for entry in matching.entries}


def ways(matching: Matching) -> set[str]:
    return {entry.how for entry in matching.entries}


def dense(path: str, ins: int, outs: int) -> Shapes:
    return {f"{path}/bias": (outs,), f"{path}/kernel": (ins, outs)}  # sorted, as JAX leaves a tree


def torch_linear(name: str, ins: int, outs: int) -> Shapes:
    return {f"{name}.weight": (outs, ins), f"{name}.bias": (outs,)}


def numbered(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


# ---- layouts


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    shape = draw(st.lists(st.integers(1, 4), min_size=2, max_size=5))
    axes = draw(st.permutations(range(len(shape))))
    cut = draw(st.integers(1, len(shape) - 1))
    choices = [
        linear(shape, cut),
        contraction(shape, tuple(axes[:cut]), tuple(axes[cut:])),
        convolution(shape),
        transposed_convolution(shape),
        transposed_convolution(shape, transpose_kernel=True),
        channels_first(shape),
        flattened((shape[0] * shape[1], 3), shape[0]),
    ]
    return draw(st.sampled_from(choices))


@given(layouts())
def test_a_layout_and_its_way_back_are_the_same_array(layout: Layout) -> None:
    stored = np.arange(np.prod(layout.stored)).reshape(layout.stored)
    laid_out = layout.to_torch(stored)
    assert laid_out.shape == layout.shape
    np.testing.assert_array_equal(layout.to_flax(laid_out), stored)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_images_go_back_and_forth(shape: list[int]) -> None:
    images = np.arange(np.prod(shape)).reshape(shape)
    moved = images_to_torch(images)
    np.testing.assert_array_equal(images_to_flax(moved), images)
    if len(shape) > 2:
        np.testing.assert_array_equal(moved, np.moveaxis(images, -1, 1))


@given(st.lists(st.floats(width=32), max_size=20), st.randoms(use_true_random=False))
def test_a_fingerprint_knows_values_and_not_their_order(values: list[float], random: Any) -> None:
    array = np.array(values, np.float32)
    shuffled = random.sample(values, len(values))
    assert fingerprint(array) == fingerprint(np.array(shuffled, np.float32).reshape(-1, 1))
    assert fingerprint(array) != fingerprint(np.append(array, np.float32(1)))
    if values:
        other = array.copy()
        other[0] = np.nextafter(other[0], np.float32(0)) if other[0] else np.float32(1)
        assert fingerprint(array) != fingerprint(other) or np.isnan(other[0])


# ---- how pairs are found


def test_equal_names_go_before_everything() -> None:
    torch = {**torch_linear("encoder.layers.0", 4, 4), **torch_linear("encoder.layers.1", 4, 4)}
    flax = {**dense("encoder/layers_1", 4, 4), **dense("encoder/layers_0", 4, 4)}
    matching = match(torch, flax).check()
    assert pairs(matching)["encoder.layers.1.weight"] == ("encoder/layers_1/kernel",)
    assert ways(matching) == {"name"}


def test_names_that_mean_the_same_are_paired() -> None:
    torch = {f"att.{short}_proj.weight": (4, 4) for short in "qkvo"}
    flax = {f"Attention_0/{name}/kernel": (4, 4) for name in ("key", "out", "query", "value")}
    matching = match(torch, flax).check()
    assert pairs(matching)["att.q_proj.weight"] == ("Attention_0/query/kernel",)
    assert pairs(matching)["att.o_proj.weight"] == ("Attention_0/out/kernel",)
    assert ways(matching) == {"name"}


def test_one_layer_of_a_shape_is_known_by_it() -> None:
    matching = match(
        torch_linear("head", 4, 2) | torch_linear("body", 3, 4), dense("Dense_1", 4, 2) | dense("Dense_0", 3, 4)
    )
    assert pairs(matching.check())["head.weight"] == ("Dense_1/kernel",)
    assert ways(matching) == {"shape"}


def test_layers_that_only_count_are_paired_in_their_order() -> None:
    torch = {name: shape for i in range(12) for name, shape in torch_linear(f"net.{2 * i}", 4, 4).items()}
    flax = {path: shape for i in sorted(range(12), key=str) for path, shape in dense(f"Dense_{i}", 4, 4).items()}
    matching = match(torch, flax).check()
    assert [entry.paths for entry in matching.entries][::2] == [(f"Dense_{i}/kernel",) for i in range(12)]
    assert ways(matching) == {"order"}


def test_a_count_from_one_is_not_taken_for_one_from_zero() -> None:
    torch = {**torch_linear("fc1", 4, 4), **torch_linear("fc2", 4, 4)}
    flax = {**dense("Dense_0", 4, 4), **dense("Dense_1", 4, 4)}
    assert pairs(match(torch, flax).check())["fc1.weight"] == ("Dense_0/kernel",)


def test_an_order_that_means_nothing_is_left() -> None:
    torch = {**torch_linear("first", 4, 4), **torch_linear("second", 4, 4)}
    flax = {**dense("apple", 4, 4), **dense("pear", 4, 4)}
    matching = match(torch, flax)
    assert not matching.entries
    assert set(matching.unmatched_torch) == set(torch)
    assert set(matching.unmatched_flax) == set(flax)
    known = match(torch, flax, flax_layers={"apple": Layer("linear"), "pear": Layer("linear")}).check()
    assert pairs(known)["first.weight"] == ("apple/kernel",)
    as_made = match(torch, dict(reversed(flax.items()))).check()  # a kernel before its bias: nothing has sorted it
    assert pairs(as_made)["first.weight"] == ("pear/kernel",)


def test_layers_are_told_apart_by_the_modules_that_they_are_in() -> None:
    torch: Shapes = {}
    flax: Shapes = {}
    for i in (0, 1):
        torch |= torch_linear(f"blocks.{i}.fc", 4, 5 + i) | {f"blocks.{i}.norm{j}.weight": (4,) for j in (1, 2)}
        flax |= {f"B_{1 - i}/LayerNorm_{j}/scale": (4,) for j in (0, 2)} | dense(f"B_{1 - i}/Dense_1", 4, 5 + i)
    torch["norm.weight"] = flax["last/scale"] = (4,)
    matching = match(torch, dict(sorted(flax.items()))).check()
    assert pairs(matching)["blocks.0.norm2.weight"] == ("B_1/LayerNorm_2/scale",)
    assert pairs(matching)["norm.weight"] == ("last/scale",)


def test_values_tell_layers_apart_whatever_their_layout() -> None:
    torch = numbered(torch_linear("first", 4, 4) | torch_linear("second", 4, 4))
    flax = {
        "apple/kernel": torch["second.weight"].T,
        "apple/bias": torch["second.bias"],
        "pear/kernel": torch["first.weight"].T,
        "pear/bias": torch["first.bias"],
    }
    matching = match(torch, flax).check()
    assert pairs(matching)["first.weight"] == ("pear/kernel",)
    assert ways(matching) == {"fingerprint"}


def test_values_tell_that_an_image_was_flattened() -> None:
    torch = numbered(torch_linear("fc", 24, 5))
    kernel = torch["fc.weight"].reshape(5, 3, 8).transpose(2, 1, 0).reshape(24, 5)  # 3 channels, last in Flax
    matching = match(torch, {"Dense_0/kernel": kernel, "Dense_0/bias": torch["fc.bias"]}).check()
    np.testing.assert_array_equal(matching.to_canonical({"Dense_0/kernel": kernel})["fc.weight"], torch["fc.weight"])


def test_values_tell_which_way_a_square_transposed_kernel_is_stored() -> None:
    torch = numbered({"up.weight": (4, 4, 3)})
    layers = {"up": Layer("conv_transpose")}
    for swapped in (False, True):
        kernel = transposed_convolution((3, 4, 4), swapped).to_flax(torch["up.weight"])
        matching = match(torch, {"ConvTranspose_0/kernel": kernel}, torch_layers=layers).check()
        np.testing.assert_array_equal(
            matching.to_canonical({"ConvTranspose_0/kernel": kernel})["up.weight"], torch["up.weight"]
        )


def test_kinds_that_are_known_are_not_mixed() -> None:
    torch = {"embed.weight": (4, 6), "head.weight": (4, 6)}
    layers = {"embed": Layer("embedding"), "head": Layer("linear")}
    matching = match(torch, {"b/kernel": (6, 4), "a/embedding": (4, 6)}, torch_layers=layers).check()
    assert pairs(matching)["embed.weight"] == ("a/embedding",)


def test_an_array_that_one_model_lacks_is_named() -> None:
    matching = match(torch_linear("head", 4, 2), {"head/kernel": (4, 2)})
    assert pairs(matching) == {"head.weight": ("head/kernel",)}
    assert dict(matching.unmatched_torch) == {"head.bias": (2,)}


# ---- fused arrays


@pytest.mark.parametrize("name", ["attn.qkv", "attn.c_attn", "attn.in_proj"])
def test_a_fused_layer_is_put_together_of_three(name: str) -> None:
    torch = numbered(torch_linear(name, 4, 12) | torch_linear("attn.proj", 4, 4))
    flax = dense("attn/key", 4, 4) | dense("attn/out", 4, 4) | dense("attn/query", 4, 4) | dense("attn/value", 4, 4)
    matching = match({key: array.shape for key, array in torch.items()}, flax).check()
    back = matching.to_flax(torch)
    np.testing.assert_array_equal(back["attn/key/kernel"], torch[f"{name}.weight"][4:8].T)
    np.testing.assert_array_equal(back["attn/out/kernel"], torch["attn.proj.weight"].T)
    assert {key: array.tolist() for key, array in matching.to_canonical(back).items()} == {
        key: array.tolist() for key, array in torch.items()
    }


def test_a_fused_layer_is_taken_apart_to_three() -> None:
    torch = numbered(
        {f"attn.{short}_proj.{role}": shape for short in "qkv" for role, shape in (("weight", (4, 4)), ("bias", (4,)))}
    )
    matching = match({key: array.shape for key, array in torch.items()}, dense("attn/qkv", 4, 12)).check()
    back = matching.to_flax(torch)
    np.testing.assert_array_equal(back["attn/qkv/kernel"][:, 8:], torch["attn.v_proj.weight"].T)
    np.testing.assert_array_equal(matching.to_canonical(back)["attn.k_proj.bias"], torch["attn.k_proj.bias"])


def test_pytorchs_attention_is_taken_apart_where_flax_has_layers() -> None:
    torch = numbered({"a.in_proj_weight": (12, 4), "a.in_proj_bias": (12,)} | torch_linear("a.out_proj", 4, 4))
    flax = {path: shape for name in ("k", "o", "q", "v") for path, shape in dense(f"block/{name}", 4, 4).items()}
    matching = match({key: array.shape for key, array in torch.items()}, flax).check()
    back = matching.to_flax(torch)
    np.testing.assert_array_equal(back["block/k/kernel"], torch["a.in_proj_weight"][4:8].T)
    np.testing.assert_array_equal(matching.to_canonical(back)["a.in_proj_weight"], torch["a.in_proj_weight"])


def test_attention_with_inputs_of_several_widths() -> None:
    weights = {"a.q_proj_weight": (4, 4), "a.k_proj_weight": (4, 3), "a.v_proj_weight": (4, 3), "a.in_proj_bias": (12,)}
    torch = numbered(weights | torch_linear("a.out_proj", 4, 4))
    flax = {f"m/{name}/bias": (2, 2) for name in ("query", "key", "value")} | {
        "m/out/kernel": (2, 2, 4),
        "m/out/bias": (4,),
    }
    flax |= {"m/query/kernel": (4, 2, 2), "m/key/kernel": (3, 2, 2), "m/value/kernel": (3, 2, 2)}
    matching = match({key: array.shape for key, array in torch.items()}, flax).check()
    np.testing.assert_array_equal(
        matching.to_flax(torch)["m/value/kernel"], torch["a.v_proj_weight"].T.reshape(3, 2, 2)
    )


# ---- an RNN's two biases

LSTM: Shapes = {"l.weight_ih": (12, 2), "l.weight_hh": (12, 3), "l.bias_ih": (12,), "l.bias_hh": (12,)}
GRU: Shapes = {"g.weight_ih": (9, 2), "g.weight_hh": (9, 3), "g.bias_ih": (9,), "g.bias_hh": (9,)}
FUSED_GRU: Shapes = {"c/dense_i/kernel": (2, 9), "c/dense_i/bias": (9,), "c/dense_h/kernel": (3, 9)}


def test_two_biases_are_added_and_one_becomes_that_and_zero() -> None:
    torch = numbered(LSTM)
    flax = {"c/dense_i/kernel": (2, 12), "c/dense_h/kernel": (3, 12), "c/dense_h/bias": (12,)}
    matching = match(LSTM, flax).check()
    stored = matching.to_flax(torch)
    np.testing.assert_array_equal(stored["c/dense_h/bias"], torch["l.bias_ih"] + torch["l.bias_hh"])
    weights, gradients = matching.to_canonical(stored), matching.to_canonical(stored, gradients=True)
    assert not weights["l.bias_ih"].any()
    np.testing.assert_array_equal(weights["l.bias_hh"], stored["c/dense_h/bias"])
    np.testing.assert_array_equal(gradients["l.bias_ih"], gradients["l.bias_hh"])


def test_a_bias_that_flax_has_no_place_for_is_refused() -> None:
    matching = match(GRU, FUSED_GRU).check()
    torch = numbered(GRU)
    with pytest.raises(WeightsError, match=r"'g.bias_hh' is not zero in rows 6 to 8"):
        matching.to_flax(torch)
    torch["g.bias_hh"][6:] = 0
    stored = matching.to_flax(torch)["c/dense_i/bias"]
    np.testing.assert_array_equal(stored, torch["g.bias_ih"] + torch["g.bias_hh"])


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


# ---- conversion


def test_what_was_not_matched_is_refused() -> None:
    matching = match(torch_linear("fc", 2, 3), dense("fc", 2, 3)).check()
    with pytest.raises(WeightsError, match="'fc/scale': no such Flax arrays"):
        matching.to_canonical({"fc/scale": np.zeros(3)})
    with pytest.raises(WeightsError, match=r"'fc.scale': no such arrays"):
        matching.to_flax({"fc.scale": np.zeros(3)})
    with pytest.raises(WeightsError, match=r"'fc/kernel' has shape \(3, 2\), and had \(2, 3\)"):
        matching.to_canonical({"fc/kernel": np.zeros((3, 2))})
    with pytest.raises(WeightsError, match=r"'fc.weight' has shape \(2, 3\)"):
        matching.to_flax({"fc.weight": np.zeros((2, 3))})


def test_a_part_of_a_tree_becomes_a_part_of_the_names() -> None:
    matching = match(torch_linear("fc", 2, 3), dense("fc", 2, 3)).check()
    assert list(matching.to_canonical({"fc/bias": np.zeros(3)})) == ["fc.bias"]
    assert list(matching.to_flax({"fc.weight": np.zeros((3, 2))})) == ["fc/kernel"]


def test_a_flax_model_alone_has_canonical_names() -> None:
    flax = dense("Dense_0", 2, 3) | {
        "Conv_0/kernel": (3, 3, 1, 8),
        "bn/scale": (8,),
        "bn/mean": (8,),
        "bn/var": (8,),
        "cls": (1, 4),
    }
    flax |= {"rnn/cell/dense_i/kernel": (2, 12), "rnn/cell/dense_h/kernel": (3, 12), "rnn/cell/dense_h/bias": (12,)}
    found = {entry.name: entry.shape for entry in canonical_names(flax).entries}
    assert found == {
        "Dense_0.weight": (3, 2),
        "Dense_0.bias": (3,),
        "Conv_0.weight": (8, 1, 3, 3),
        "bn.weight": (8,),
        "bn.running_mean": (8,),
        "bn.running_var": (8,),
        "cls": (1, 4),
        "rnn.weight_ih_l0": (12, 2),
        "rnn.weight_hh_l0": (12, 3),
        "rnn.bias_ih_l0": (12,),
        "rnn.bias_hh_l0": (12,),
    }


def test_arrays_are_named_by_dotted_paths_too() -> None:
    names = canonical_names(dense("layers/0", 2, 3)).named
    assert {name: array.shape for name, array in names({"layers.0.kernel": np.zeros((2, 3))}).items()} == {
        "layers.0.weight": (3, 2)
    }
    with pytest.raises(WeightsError, match=r"layers\.1\.kernel"):
        names({"layers.1.kernel": np.zeros((2, 3))})


def test_a_module_of_ones_own_has_its_weight_as_pytorch_has_it_or_transposed() -> None:
    torch = torch_linear("fc", 2, 3) | torch_linear("head", 3, 4) | {"norm.weight": (5,)}
    jax = {"a/weight": (3, 2), "a/bias": (3,), "b/weight": (3, 4), "b/bias": (4,), "c/weight": (5,)}
    matching = match(torch, jax).check()
    arrays = numbered(torch)
    stored = matching.to_flax(arrays)
    np.testing.assert_array_equal(stored["a/weight"], arrays["fc.weight"])
    np.testing.assert_array_equal(stored["b/weight"], arrays["head.weight"].T)


def test_arrays_of_haiku_and_of_ones_own_are_read() -> None:
    torch = torch_linear("fc", 2, 3) | {"norm.weight": (3,), "norm.bias": (3,), "embed.weight": (7, 2)}
    jax = {
        "linear/w": (2, 3),
        "linear/b": (3,),
        "layer_norm/scale": (3,),
        "layer_norm/offset": (3,),
        "embed/embeddings": (7, 2),
    }
    matching = match(torch, jax).check()
    assert pairs(matching)["norm.bias"] == ("layer_norm/offset",)
    arrays = numbered(torch)
    np.testing.assert_array_equal(matching.to_flax(arrays)["linear/w"], arrays["fc.weight"].T)


def test_canonical_names_of_two_runs_are_aligned() -> None:
    alone = canonical_names({"Conv_0/kernel": (3, 3, 1, 8)} | dense("Dense_0", 8, 3) | dense("Dense_1", 3, 3))
    other = {entry.name: entry.shape for entry in alone.entries}
    torch = {"features.0.weight": (8, 1, 3, 3)} | torch_linear("fc1", 8, 3) | torch_linear("fc2", 3, 3)
    matching = align(torch, other).check()
    assert pairs(matching)["features.0.weight"] == ("Conv_0.weight",)
    assert dict(matching.modules) == {"Conv_0": "features.0", "Dense_0": "fc1", "Dense_1": "fc2"}


def test_runs_are_aligned_by_order_only_if_both_have_one() -> None:
    made = torch_linear("first", 4, 4) | torch_linear("second", 4, 4)
    other = torch_linear("zebra", 4, 4) | torch_linear("apple", 4, 4)
    assert pairs(align(made, other).check())["first.weight"] == ("zebra.weight",)
    assert not align(made, dict(sorted(other.items()))).entries
    assert not align(dict(sorted(other.items())), made).entries
    known = canonical_names(
        dense("zebra", 4, 4) | dense("apple", 4, 4), {"zebra": Layer("linear"), "apple": Layer("linear")}
    )
    assert pairs(align(made, {entry.name: entry.shape for entry in known.entries}).check())["first.weight"] == (
        "zebra.weight",
    )


def test_an_explanation_has_a_line_for_each_name() -> None:
    matching = match(torch_linear("fc", 2, 3) | {"x": (1,)}, dense("fc", 2, 3) | {"y": (2,)})
    assert matching.explain().splitlines() == [
        "fc.weight (3, 2) ← fc/kernel (by name)",
        "fc.bias (3,) ← fc/bias (by name)",
        "x (1,) ← nothing",
        "nothing ← y (2,)",
    ]
    assert matching.counts() == {"name": 2, "unmatched": 2}
