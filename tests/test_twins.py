"""Check what a twin changes, and that a script which makes no twin is changed in nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec
from torch import nn

import noether_jax
import noether_torch
from noether_core.twin import VARIABLE, Twin, TwinError, nudged, this_twin, twin_path

FLOATS = (np.float16, np.float32, np.float64, ml_dtypes.bfloat16)


class Batch(NamedTuple):
    images: Any
    labels: Any


@pytest.fixture
def making(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Twin:
    """Let this process make a twin whose rows are permuted."""
    twin = Twin(tmp_path / "run", tmp_path / "run" / "twins" / "2", seed=2, rows=True)
    twin.write()
    monkeypatch.setenv(VARIABLE, str(twin.path))
    return twin


# ------------------------------------------------------------------ nudging


@pytest.mark.parametrize("dtype", FLOATS)
@given(data=st.data())
def test_each_element_moves_by_one_unit_in_the_last_place_and_zeros_stay(dtype: Any, data: st.DataObject) -> None:
    bits = {2: np.uint16, 4: np.uint32, 8: np.uint64}[np.dtype(dtype).itemsize]
    raw = data.draw(hnp.arrays(bits, hnp.array_shapes(max_dims=3, max_side=5)))
    values = raw.view(dtype)
    moved = nudged(values, seed=data.draw(st.integers(0, 2**32 - 1)))
    assert (moved.dtype, moved.shape) == (values.dtype, values.shape)
    steps = np.abs(moved.view(bits).astype(object) - raw.astype(object))
    with np.errstate(invalid="ignore"):  # of a signaling NaN
        still = (values == 0) | ~np.isfinite(values)
    assert np.all(steps[still] == 0)
    assert np.isfinite(moved[~still]).all()
    # the two ends of the numbers, from which one way leads to zero or to infinity
    assert all(step == 1 or _is_an_end(value) for step, value in zip(steps[~still], values[~still], strict=True))


@pytest.mark.parametrize(
    ("dtype", "bits"), [(np.float16, 0x7D01), (np.float32, 0x7FA00001), (ml_dtypes.bfloat16, 0x7F81)]
)
def test_a_signaling_nan_keeps_its_bits(dtype: Any, bits: int) -> None:
    raw = np.array([bits], f"u{np.dtype(dtype).itemsize}")
    assert nudged(raw.view(dtype), 1).view(raw.dtype) == raw


def _is_an_end(value: Any) -> bool:
    found = ml_dtypes.finfo(value.dtype)
    return bool(abs(value) in (found.max, found.smallest_subnormal))


def test_weights_go_both_ways_and_arrays_of_one_shape_go_different_ways() -> None:
    ones = np.ones(1000, np.float32)
    first, second = nudged(ones, 1, 0), nudged(ones, 1, 1)
    assert 400 < np.sum(first > 1) < 600
    assert 400 < np.sum((first > 1) == (second > 1)) < 600
    assert np.array_equal(first, nudged(ones, 1, 0))


@pytest.mark.parametrize("values", [np.arange(3), np.array([True, False]), np.array(["a"])])
def test_what_holds_no_floats_is_not_nudged(values: np.ndarray) -> None:
    assert np.array_equal(nudged(values, 1), values)


def test_complex_numbers_are_nudged_in_both_parts() -> None:
    moved = nudged(np.full(4, 1 + 2j, np.complex64), 1)
    assert np.all(moved.real != 1)
    assert np.all(moved.imag != 2)


# ------------------------------------------------------------------ in the frameworks


def test_both_frameworks_nudge_alike(making: Twin) -> None:
    for number, dtype in enumerate(("float32", "bfloat16", "float16")):
        values = np.random.default_rng(number).normal(size=(3, 4)).astype(np.float32)
        in_torch = noether_torch.twin([torch.from_numpy(values.copy()).to(getattr(torch, dtype))])[0]
        in_jax = noether_jax.twin([jnp.asarray(values, dtype)])[0]
        assert in_torch.dtype == getattr(torch, dtype)
        assert in_jax.dtype == dtype
        assert np.array_equal(in_torch.float().numpy(), np.asarray(in_jax, np.float32))
        assert not np.array_equal(in_torch.float().numpy(), np.asarray(jnp.asarray(values, dtype), np.float32))


def test_a_module_of_pytorch_is_nudged_in_place_and_its_buffers_are_not(making: Twin) -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4))
    tied = nn.ModuleList([model[0], model[0]])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pointer, is_trained = model[0].weight.data_ptr(), model[0].weight.requires_grad
    assert noether_torch.twin(model) is model
    assert (model[0].weight.data_ptr(), model[0].weight.requires_grad) == (pointer, is_trained)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "1.weight"}  # the bias is zeros
    relative = (model[0].weight - before["0.weight"]).abs() / before["0.weight"].abs()
    assert relative.max() < 2**-22
    noether_torch.twin(tied)
    assert ((model[0].weight - before["0.weight"]).abs() / before["0.weight"].abs()).max() < 2**-21


def test_a_module_of_flax_is_nudged_and_so_is_what_is_sharded(making: Twin) -> None:
    model = nnx.Linear(4, 8, rngs=nnx.Rngs(0))
    new = noether_jax.twin(model)
    assert type(new) is nnx.Linear
    assert np.all(np.asarray(new.kernel[...]) != np.asarray(model.kernel[...]))
    assert np.array_equal(new.bias[...], model.bias[...])
    mesh = jax.make_mesh((2, 4), ("a", "b"))
    whole = jax.random.normal(jax.random.key(0), (8, 4))
    for spec in (PartitionSpec("a"), PartitionSpec(None, "b"), PartitionSpec()):
        value = jax.device_put(whole, NamedSharding(mesh, spec))
        moved = noether_jax.twin({"w": value})["w"]
        assert moved.sharding == value.sharding
        steps = np.abs(np.asarray(moved).view(np.int32) - np.asarray(value).view(np.int32))
        assert np.all(steps == 1)
        copies = {str(each.index): [] for each in moved.addressable_shards}
        for each in moved.addressable_shards:
            copies[str(each.index)].append(np.asarray(each.data))
        assert all(np.array_equal(each, group[0]) for group in copies.values() for each in group)


def test_keys_of_random_numbers_are_not_nudged(making: Twin) -> None:
    tree = {"key": jax.random.key(0), "w": jnp.ones(3), "step": 7}
    moved = noether_jax.twin(tree)
    assert jnp.array_equal(jax.random.key_data(moved["key"]), jax.random.key_data(tree["key"]))
    assert moved["step"] == 7


@pytest.mark.parametrize("framework", [noether_torch, noether_jax])
def test_rows_stay_together(making: Twin, framework: Any) -> None:
    array = torch.as_tensor if framework is noether_torch else jnp.asarray
    images, labels = np.arange(24, dtype=np.float32).reshape(8, 3), np.arange(8)
    batch = {"pair": Batch(array(images), array(labels)), "more": [array(labels)], "scale": 0.5}
    new = framework.twin_batch(batch)
    order = np.asarray(new["pair"].labels)
    assert sorted(order) == list(range(8)) != list(order)
    assert np.array_equal(np.asarray(new["pair"].images), images[order])
    assert np.array_equal(np.asarray(new["more"][0]), order)
    assert new["scale"] == 0.5
    assert np.array_equal(np.asarray(framework.twin_batch(array(labels))), order)  # given alone, the same order
    with pytest.raises(TwinError, match="arrays of 2 and 8 rows"):
        framework.twin_batch((array(labels), array(labels[:2])))


def test_a_batch_with_methods_of_its_own_keeps_them(making: Twin) -> None:
    class Encoding(dict[str, Any]):
        def where(self) -> str:
            return "here"

    new = noether_torch.twin_batch(Encoding(ids=torch.arange(5)))
    assert new.where() == "here"
    assert new["ids"].tolist() != list(range(5))


@pytest.mark.parametrize("rows", [False, True])
def test_only_what_makes_a_twin_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: bool) -> None:
    batch, model, params = (torch.arange(4),), nn.Linear(2, 2), {"w": jnp.ones(2)}
    assert this_twin() is None
    before = model.weight.clone()
    assert noether_torch.twin_batch(batch) is batch
    assert noether_jax.twin_batch(params) is params
    assert noether_torch.twin(model) is model
    assert noether_jax.twin(params) is params
    assert torch.equal(model.weight, before)
    assert twin_path("runs/a") == Path("runs/a")
    Twin(tmp_path, tmp_path / "twins" / "1", 1, rows).write()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "twins" / "1"))
    assert (noether_torch.twin_batch(batch) is batch) is not rows
    assert not torch.equal(noether_torch.twin(model).weight, before)


# ------------------------------------------------------------------ wrong use


def test_a_twin_goes_to_its_own_directory_and_another_run_is_refused(
    making: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(making.run.parent)
    assert twin_path("run") == making.path
    assert noether_torch.twin_path is noether_jax.twin_path is twin_path
    with pytest.raises(TwinError, match="the script writes to 'other'"):
        twin_path("other")


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"seed": "1", "rows": true, "is_made": true}', '{"seed": -1, "rows": true}']
)
def test_a_variable_that_names_no_twin_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "twin.json").write_text(text, encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(TwinError, match=VARIABLE):
        noether_torch.twin(nn.Linear(2, 2))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: noether_torch.twin(each for each in ()), "generator"),
        (lambda: noether_torch.twin([]), "no tensors"),
        (lambda: noether_torch.twin(nn.ReLU()), "no tensors"),
        (lambda: noether_jax.twin({"step": 3}), "no arrays"),
    ],
)
def test_weights_that_are_none_are_refused(making: Twin, call: Any, says: str) -> None:
    with pytest.raises(TwinError, match=says):
        call()
