"""Layouts and their ways back are the same array; what was matched is converted, and what was not is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from name_cases import Shapes, dense, numbered, pairs, torch_linear

from noether_core.names import (
    Layer,
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
