"""One fingerprint and the same statistics in NumPy, JAX and PyTorch, of every dtype, whatever the order and the sharding."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from noether_core import NoetherError
from noether_core.probes import Due, Probed, fingerprint, places, statistics_of
from noether_core.probes.fingerprint import whole_fingerprint
from noether_core.probes.statistics import measure
from noether_jax import measuring as in_jax
from noether_torch import measuring as in_torch
from noether_torch.backend import BACKEND as TORCH

DRAWN = np.random.default_rng(0)
NORMAL = DRAWN.standard_normal((33, 70))
ODD = np.array([0.0, -0.0, np.inf, -np.inf, 1e-40, -1e-45, 3e38, np.nan], np.float32)
ARRAYS = {
    "float32": NORMAL.astype(np.float32),
    "float16": NORMAL.astype(np.float16),
    "float16, subnormal": np.array([6e-8, -6e-8, 1e-5], np.float16),
    "bfloat16": NORMAL.astype(ml_dtypes.bfloat16),
    "bfloat16, subnormal": np.array([1e-40, -1e-40, 2.0], ml_dtypes.bfloat16),
    "float8": NORMAL.astype(ml_dtypes.float8_e4m3fn),
    "float64": NORMAL,
    "float64 that float32s equal": NORMAL.astype(np.float32).astype(np.float64),
    "float64 beyond float32": np.array([1e300, 1e-300, -1e-42, 0.0, -0.0, 2.0**-126, np.inf, np.nan]),
    "complex64": (NORMAL + 1j * NORMAL[::-1]).astype(np.complex64),
    "bool": NORMAL > 0,
    "int8": DRAWN.integers(-128, 128, 99).astype(np.int8),
    "uint16": DRAWN.integers(0, 2**16, 99).astype(np.uint16),
    "int32": DRAWN.integers(-(2**31), 2**31, 99).astype(np.int32),
    "uint32": DRAWN.integers(0, 2**32, 99).astype(np.uint32),
    "int64": DRAWN.integers(-(2**63), 2**63, 99),
    "odd float32": ODD,
    "constant": np.full((50, 7), 0.1, np.float32),
    "far from zero": (NORMAL + 1e4).astype(np.float32),
    "one number": np.float32(2.5),
    "empty": np.zeros((0, 3), np.float32),
    "of several pieces": DRAWN.standard_normal(200_001).astype(np.float32),
}


def hosted(probed: Probed) -> Any:
    return probed.on_host([np.asarray(leaf) for leaf in probed.leaves()])


def in_compiled_jax(array: Any) -> Any:
    return hosted(jax.jit(lambda value: in_jax.measured({"data/x": value}, Due(statistics=True)))(array))


def in_eager_jax(array: Any) -> Any:
    with jax.enable_x64(True):
        return hosted(in_jax.measured({"data/x": jnp.asarray(array)}, Due(statistics=True)))


def as_tensor(array: Any) -> torch.Tensor:
    array = np.asarray(array)
    return torch.from_numpy(array) if array.dtype.kind == "c" else TORCH.from_numpy(array)


def on_torch_cpu(array: Any) -> Any:
    return hosted(in_torch.measured({"data/x": as_tensor(array)}, Due(statistics=True)))


def on_torch_device(array: Any) -> Any:
    """Return what an accelerator computes, on the CPU."""
    tensor = in_torch._whole(as_tensor(array))
    reals, sums = in_torch.on_device([tensor])
    return hosted(Probed(("data/x",), (tuple(tensor.shape),), reals.numpy(), sums.numpy(), {}))


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("measure", [in_eager_jax, in_compiled_jax, on_torch_cpu, on_torch_device])
def test_all_frameworks_measure_alike(measure: Any, name: str) -> None:
    array = ARRAYS[name]
    if measure is on_torch_device and not np.size(array):
        pytest.skip("an empty tensor is measured by NumPy")
    if measure is in_compiled_jax and np.asarray(array).dtype.itemsize == 8 and name != "complex64":
        pytest.skip("without x64 JAX makes 32 bits of 64")
    wanted, found = statistics_of(array), measure(array)
    assert f"{found.fingerprints[0]:016x}" == wanted.fingerprint
    assert found.counts.tolist() == [wanted.count]
    reals = [wanted.mean, wanted.std, wanted.norm, wanted.min, wanted.max]
    with np.errstate(all="ignore"):
        size = np.nan_to_num(wanted.norm / max(wanted.count, 1) ** 0.5, nan=0.0, posinf=0.0)  # of a value
        np.testing.assert_allclose(found.reals[0], reals, rtol=1e-11, atol=1e-13 + 1e-11 * size)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "int64", "bool"])
def test_an_accelerator_measures_many_in_one_go_as_one_by_one(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_torch, "_ROW", 16)
    monkeypatch.setattr(in_torch, "_PIECE", 200)
    monkeypatch.setattr(in_torch, "_MOST_GATHERED", 24)
    generator = torch.Generator().manual_seed(0)
    sizes = [1, 500, 16, 17, 3, 201, 200, *torch.randint(1, 60, (40,), generator=generator).tolist()]
    tensors = [9 * torch.randn(size, generator=generator) for size in sizes]
    if dtype not in ("int64", "bool"):
        tensors[7][0], tensors[9][-1], tensors[10][0] = np.nan, np.inf, -np.inf
    tensors = [tensor.to(getattr(torch, dtype)) for tensor in tensors]
    groups = list(in_torch._together(sizes))
    assert [at for group in groups for at in group] == list(range(len(sizes)))
    assert 5 < len(groups) < len(sizes) / 2
    for group in groups:
        reals, sums = in_torch.on_device([tensors[at] for at in group])
        for at, of_one, mixed in zip(group, reals.numpy(), sums.numpy(), strict=True):
            wanted = measure(in_torch.to_array(tensors[at]))
            assert mixed.view(np.uint32).tolist() == wanted.sums.tolist()
            np.testing.assert_allclose(of_one, wanted.reals, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "int32", "far from zero"])
def test_statistics_are_those_of_binary64(name: str) -> None:
    found, wide = statistics_of(ARRAYS[name]), ARRAYS[name].astype(np.float64)
    wanted = [wide.mean(), wide.std(), np.linalg.norm(wide), wide.min(), wide.max()]
    np.testing.assert_allclose([found.mean, found.std, found.norm, found.min, found.max], wanted, rtol=1e-12)


def test_a_constant_has_no_spread_and_is_its_mean() -> None:
    found = statistics_of(np.full(1000, 0.1, np.float32))
    assert (found.std, found.mean, found.min) == (0.0, np.float32(0.1), np.float32(0.1))


def test_nan_shows_in_all_numbers() -> None:
    found = statistics_of(ODD)
    assert all(np.isnan(value) for value in (found.mean, found.std, found.norm, found.min, found.max))


def test_a_fingerprint_does_not_depend_on_order_layout_or_partition() -> None:
    array = ARRAYS["float32"]
    others = [
        array.T,
        array[::-1, ::2].copy(),
        array.reshape(-1),
        np.asfortranarray(array),
        DRAWN.permuted(array.ravel()),
    ]
    prints = [fingerprint(each) for each in others]
    assert [each == fingerprint(array) for each in prints] == [True, False, True, True, True]
    parts = [in_torch.measured({"data/x": torch.from_numpy(part)}, Due(True)).sums for part in np.array_split(array, 5)]
    first, second = torch.cat(parts).view(torch.uint32).numpy().astype(np.uint64).sum(0).tolist()
    assert f"{whole_fingerprint(first, second, array.size):016x}" == fingerprint(array)


def test_a_sharded_array_is_measured_as_a_whole_one() -> None:
    mesh = jax.make_mesh((4, 2), ("a", "b"))
    array = DRAWN.standard_normal((16, 1024)).astype(np.float32)
    wanted = statistics_of(array)
    for spec in (PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b")), PartitionSpec()):
        found = in_compiled_jax(jax.device_put(array, NamedSharding(mesh, spec)))
        assert f"{found.fingerprints[0]:016x}" == wanted.fingerprint
        np.testing.assert_allclose(found.reals[0, :3], [wanted.mean, wanted.std, wanted.norm], rtol=1e-11)


@pytest.mark.parametrize("lanes", [2, 8])
def test_an_array_that_is_cut_into_lanes_is_measured_as_a_whole_one(lanes: int) -> None:
    rows = DRAWN.standard_normal((3, 24, 40)).astype(np.float32)
    with jax.enable_x64(True):
        reals, sums = jax.jit(in_jax._measured_rows, static_argnums=1)(rows, lanes)
    shapes = ((24, 40),) * 3
    found = hosted(Probed(("data/a", "data/b", "data/c"), shapes, np.asarray(reals), np.asarray(sums), {}))
    for at, row in enumerate(rows):
        wanted = statistics_of(row)
        assert f"{found.fingerprints[at]:016x}" == wanted.fingerprint
        reals_wanted = [wanted.mean, wanted.std, wanted.norm, wanted.min, wanted.max]
        np.testing.assert_allclose(found.reals[at], reals_wanted, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64", "int32", "uint8"])
def test_every_bit_of_a_value_shows(dtype: str) -> None:
    array = ARRAYS["float64"][0].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    seen, changed = [fingerprint(array)], []
    for bit in range(8 * array.itemsize):
        words = array.copy().view(f"u{array.itemsize}")
        words[7] ^= words.dtype.type(1 << bit)
        changed.append(words.view(array.dtype))
    seen += [fingerprint(each) for each in changed if each[7] == each[7]]  # every NaN is one value
    assert len(seen) > 7 * array.itemsize
    assert len(set(seen)) == len(seen)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=50), st.randoms())
def test_a_multiset_has_one_fingerprint_and_another_one_another(values: list[float], random: Any) -> None:
    array = np.array(values, np.float32)
    shuffled = [*values]
    random.shuffle(shuffled)
    assert fingerprint(np.array(shuffled, np.float32)) == fingerprint(array)
    assert fingerprint(np.append(array, np.float32(0))) != fingerprint(array)
    if values:
        other = array.copy()
        other[0] = 1.5 if other[0] != 1.5 else 2.5
        assert fingerprint(other) != fingerprint(array)


def test_what_counts_is_the_value_and_not_its_dtype_or_sign_of_zero() -> None:
    assert fingerprint(np.array([-0.0])) == fingerprint(np.array([0.0], np.float16))
    assert fingerprint(ARRAYS["bfloat16"]) == fingerprint(ARRAYS["bfloat16"].astype(np.float32))
    assert fingerprint(ARRAYS["float16"]) == fingerprint(ARRAYS["float16"].astype(np.float64))
    assert fingerprint(np.array([-3, 7], np.int8)) == fingerprint(np.array([7, -3], np.int64))
    assert fingerprint(np.array([np.nan], np.float32)) == fingerprint(np.array([-np.nan], np.float16))
    assert fingerprint(np.array([2**40 + 1])) != fingerprint(np.array([1]))


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(NoetherError, match=r"dtype <U1; expected bools, ints, floats or complex numbers"):
        fingerprint(np.array(["a"]))


# ---------------------------------------------------------------------- samples


@pytest.mark.parametrize("shape", [(3000,), (4, 1000), (300, 500), (64, 3, 7, 7), (2, 2, 2, 2000), (100_000, 1)])
def test_a_sample_is_within_the_limit_has_every_block_of_rows_and_is_always_the_same(shape: tuple[int, ...]) -> None:
    limit = 4000
    found = places(shape, limit)
    assert found is not None
    assert np.prod([len(along) for along in found]) * 4 <= limit
    assert np.prod([len(along) for along in found]) * 4 > limit / 3
    for size, along in zip(shape, found, strict=True):
        assert (np.diff(along) > 0).all()
        assert along[0] >= 0
        assert along[-1] < size
        blocks = min(3, len(along))  # as of a fused projection
        assert len(set((along * blocks // size).tolist())) == blocks
    again = places(shape, limit)
    assert again is not None
    assert all((a == b).all() for a, b in zip(found, again, strict=True))


def test_both_frameworks_keep_the_same_places() -> None:
    array = DRAWN.standard_normal((300, 500)).astype(np.float32)
    due = Due(array_limit=4000)
    along = places(array.shape, 4000)
    assert along is not None
    wanted = array[np.ix_(*along)]
    compiled = jax.jit(lambda kernel: in_jax.measured({"param/w": kernel.T}, due))(array.T)
    of_torch = in_torch.measured({"param/w": torch.from_numpy(array)}, due)
    np.testing.assert_array_equal(compiled.arrays["param/w"], wanted)
    np.testing.assert_array_equal(of_torch.arrays["param/w"], wanted)
    half = in_torch.measured({"param/w": torch.from_numpy(array).bfloat16()}, due).arrays["param/w"]
    assert half.shape == wanted.shape  # whatever the dtype's size
