"""Names of two models are matched, by name, values, shape or order; what is doubtful is left."""

from __future__ import annotations

import numpy as np
import pytest
from name_cases import Shapes, dense, numbered, pairs, torch_linear, ways

from noether_core.names import (
    Layer,
    match,
)
from noether_core.names.layout import (
    transposed_convolution,
)

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
