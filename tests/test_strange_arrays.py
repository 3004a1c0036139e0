"""What is called an array and is no plain one is refused at the call, or has its right values; it costs no other key."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pandas as pd
import pytest
import torch
from flax import nnx
from hook_cases import each_front_end, every, logged
from jax.experimental import sparse
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor
from torch.testing._internal.two_tensor import TwoTensor

import noether_jax
import noether_torch
from noether_core import NoetherError, UpdateOutputError, read_run

Make = Callable[[np.ndarray[Any, Any]], Any]  # gives something strange that looks like a float32 array

# ---------------------------------------------------------------------- NumPy's


class Units(np.ndarray[Any, Any]):
    pass


def memory_map(values: np.ndarray[Any, Any], folder: list[Path] = []) -> Any:  # noqa: B006
    mapped = np.memmap(folder[0] / "map", values.dtype, "w+", shape=values.shape or (1,))
    mapped[...] = values
    return mapped if values.ndim else mapped.reshape(())


TAKEN: list[Make] = [
    lambda values: values,
    lambda values: values.astype(">f4"),
    lambda values: values.astype(">f8"),
    lambda values: values.astype(">i2"),
    np.asfortranarray,
    lambda values: np.broadcast_to(values, (2, *values.shape))[1],
    lambda values: np.stack([values, values], -1)[..., 0],
    lambda values: values[::-1] if values.ndim else values,
    lambda values: np.lib.stride_tricks.as_strided(values),
    np.asmatrix,
    lambda values: values.view(np.recarray),
    lambda values: values.tolist(),
    lambda values: tuple(values.tolist()) if values.ndim == 1 else values.tolist(),
    lambda values: list(values) if values.ndim else values,
    lambda values: values.astype(ml_dtypes.bfloat16),
    lambda values: np.require(values, requirements="O"),
    memory_map,
]
REFUSED: list[Make] = [
    lambda values: np.ma.array(values, mask=False),
    lambda values: np.ma.array(values, mask=values > 1),
    lambda _: np.ma.masked,
    lambda values: [np.ma.array(values, mask=values > 1)],
    lambda values: values.view(Units),
    lambda values: values.astype(complex),
    lambda values: values.astype(object),
    lambda values: values.astype(str),
    lambda values: values.astype("S4"),
    lambda values: values.astype("M8[ns]"),
    lambda values: values.astype("m8[s]"),
    lambda values: values.astype(np.longdouble),
    lambda values: values.astype([("a", "f4"), ("b", "i8")]),
    lambda values: np.rec.array(values.astype([("a", "f4")])),
    lambda values: pd.Series(values.reshape(-1)),
    lambda values: pd.DataFrame({"a": values.reshape(-1)}),
    lambda _: pd.NA,
    lambda values: memoryview(values),
    lambda values: values.tobytes(),
    lambda _: [torch.tensor(1.0), torch.tensor(2.0)],
    lambda _: [jnp.float32(1), jnp.float32(2)],
    lambda _: [[1.0], [2.0, 3.0]],
    lambda _: [1.0, None],
    lambda _: {1.0, 2.0},
    lambda _: Fraction(1, 2),
    lambda _: iter([1.0]),
]


def step(run: Any, outputs: Any, failed: list[Any]) -> bool:
    """Tell whether a step was taken; note what it raised."""
    try:
        run.step(outputs)
    except Exception as error:
        failed.append(error)
        return False
    return True


def train(front_end: Any, path: Path, make: Make, shape: tuple[int, ...], strange_at: set[int], plain: Make) -> Any:
    """Train for six updates, of which some get something strange; check what is logged of what was taken."""
    rng = np.random.default_rng(len(shape))
    failed: list[Any] = []
    taken: list[np.ndarray[Any, Any]] = []
    with front_end.Run(path, [{"every_n_updates": 100, "keys": ["x", "y"], "reduce": ["mean", "min", "count"]}]) as run:
        for number in range(6):
            values = rng.integers(1, 9, shape).astype(np.float32)
            value = make(values) if number in strange_at else plain(values)
            if step(run, {"y": 2.0, "x": value}, failed):
                taken.append(values)
    entry = read_run(path).entries[-1]
    pooled = np.concatenate([values.reshape(-1) for values in taken]).astype(np.float64)
    is_wide = entry["x/mean/U100"] != float(np.float32(entry["x/mean/U100"]))  # a list of Python numbers came too
    mean = pooled.mean() if is_wide else np.float32(pooled.mean())
    assert entry["y/count/U100"] == len(taken)
    assert (entry["x/mean/U100"], entry["x/min/U100"], entry["x/count/U100"]) == (mean, pooled.min(), pooled.size)
    return failed, len(taken)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> None:
    memory_map.__defaults__[0][:] = [tmp_path]  # type: ignore[index]


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (70_000,)])
@pytest.mark.parametrize("make", TAKEN)
@each_front_end
def test_an_array_of_another_form_has_the_values_it_shows(
    front_end: Any, make: Make, shape: tuple[int, ...], tmp_path: Path
) -> None:
    for strange_at in ({0, 2}, {1, 5}, set(range(6))):
        assert train(
            front_end, tmp_path / str(len(strange_at) + min(strange_at)), make, shape, strange_at, lambda v: v
        ) == ([], 6)


def refused(failed: list[Any], count: int) -> None:
    assert [type(error) for error in failed] == [UpdateOutputError] * count, failed
    for error in failed:
        assert "'x' " in str(error)
        assert "expected" in str(error)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::numpy.exceptions.ComplexWarning")
@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("make", REFUSED)
@each_front_end
def test_what_is_no_array_of_numbers_is_refused_at_the_call(
    front_end: Any, make: Make, shape: tuple[int, ...], tmp_path: Path
) -> None:
    for strange_at in ({0, 2}, {1, 4}):
        failed, taken = train(
            front_end, tmp_path / str(min(strange_at)), make, shape, strange_at, lambda values: values
        )
        refused(failed, 2)
        assert taken == 4


@each_front_end
def test_a_masked_array_says_what_to_do_and_both_ways_are_right(front_end: Any, tmp_path: Path) -> None:
    masked = np.ma.array([1.0, 2.0, 999.0], mask=[0, 0, 1])
    with front_end.Run(tmp_path, [every(1), every(1, keys=["all"], weight="here")]) as run:
        with pytest.raises(UpdateOutputError, match=r"numpy.ma.*MaskedArray.*\.compressed\(\).*`weight`"):
            run.step({"loss": masked, "all": 1.0, "here": 1.0})
        run.step({"loss": masked.compressed(), "all": masked.data, "here": ~masked.mask})
        with pytest.raises(UpdateOutputError, match="MaskedArray"):
            run.step({"loss": 1.0, "all": masked.data, "here": np.ma.array(~masked.mask, mask=False)})
    assert logged(tmp_path, "loss/U1") == [(1, 1.5)]
    assert logged(tmp_path, "all/U1") == [(1, 1.5)]


# ---------------------------------------------------------------------- PyTorch's


class Benign(torch.Tensor):
    pass


class MyParameter(torch.nn.Parameter):
    pass


class Loud(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(function, types, args, kwargs)


def fake(value: torch.Tensor) -> Any:
    with FakeTensorMode() as mode:
        return mode.from_tensor(value)


def freed(value: torch.Tensor) -> torch.Tensor:
    value = value.clone()
    value.untyped_storage().resize_(0)
    return value


def kept(transform: Callable[..., Any]) -> Callable[[torch.Tensor], Any]:
    """Return what a transformed function saw, after it has returned."""

    def make(value: torch.Tensor) -> Any:
        seen: list[Any] = []

        def function(inner: torch.Tensor) -> torch.Tensor:
            seen.append(inner)
            return inner.sum()

        transform(function)(value)
        return seen[-1]

    return make


def nested(layout: torch.layout) -> Callable[[torch.Tensor], Any]:
    def make(value: torch.Tensor) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.nested.nested_tensor([value.reshape(-1), value.reshape(-1)[:1]], layout=layout)

    return make


def masked(value: torch.Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return masked_tensor(value, value > 2)


def quantized(value: torch.Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


STRANGE_TENSORS = [
    fake, freed, masked, quantized, nested(torch.strided), nested(torch.jagged),
    lambda value: value.to("meta"),
    lambda value: TwoTensor(value, value),
    lambda value: value.as_subclass(Loud),
    lambda value: value.reshape(1, -1).to_sparse_csr() if value.ndim == 1 else value.to("meta"),
    lambda value: value.to_sparse() if value.ndim else value.to("meta"),
    lambda value: value.to(torch.complex64),
    lambda _: torch.nn.UninitializedParameter(),
    lambda _: torch.nn.UninitializedBuffer(),
    kept(lambda function: lambda value: torch.func.vmap(function)(torch.stack([value, value]))),
    kept(torch.func.grad),
    kept(lambda function: lambda value: torch.func.jvp(function, (value,), (value,))),
    kept(lambda function: lambda value: torch.func.functionalize(function)(value)),
]  # fmt: skip
PLAIN_TENSORS = [
    torch.nn.Parameter, MyParameter, torch.nn.Buffer, torch.Tensor.requires_grad_,
    lambda value: value.as_subclass(Benign),
    lambda value: (value * 1).requires_grad_() * 1,
    lambda value: value.to(torch.complex64).real,
    lambda value: torch.complex(value, -value).conj().imag,
    lambda value: torch._neg_view(-value),
    lambda value: value.expand(2, *value.shape)[1],
    lambda value: torch.stack([value, value], -1)[..., 0],
    lambda value: value.to(torch.float8_e5m2),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore::FutureWarning", "ignore:`torch.jit")
@pytest.mark.parametrize("shape", [(), (3,), (40_000,)])
@pytest.mark.parametrize("make", STRANGE_TENSORS)
def test_a_strange_tensor_is_refused_at_the_call(make: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    for strange_at in ({0, 2}, {1, 4}):
        path = tmp_path / str(min(strange_at))
        failed, taken = train(
            noether_torch, path, lambda values: make(torch.tensor(values)), shape, strange_at, torch.tensor
        )
        refused(failed, 6 - taken)
        assert taken == 4 or (not shape and taken > 4)  # of a single number some give the value, as plain ones do


@pytest.mark.parametrize("shape", [(), (3,), (40_000,)])
@pytest.mark.parametrize("make", PLAIN_TENSORS)
def test_a_tensor_of_another_form_has_the_values_it_shows(make: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    for strange_at in ({0, 2}, {1, 5}, set(range(6))):
        with torch.inference_mode(len(strange_at) == 6):
            path = tmp_path / str(len(strange_at) + min(strange_at))
            made = train(
                noether_torch, path, lambda values: make(torch.tensor(values)), shape, strange_at, torch.tensor
            )
        assert made == ([], 6)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_step_inside_of_a_transform_is_refused_at_the_call(shape: tuple[int, ...], tmp_path: Path) -> None:
    value = torch.ones(shape)
    failed: list[Any] = []
    with noether_torch.Run(tmp_path, [every(4)]) as run:

        def function(inner: torch.Tensor, outer: torch.Tensor) -> torch.Tensor:
            step(run, {"loss": inner}, failed)
            step(run, {"loss": outer}, failed)
            return inner.sum()

        for _ in range(2):
            torch.func.grad(function)(value, value)
            torch.func.vmap(function)(torch.stack([value] * 2), torch.stack([value] * 2))
            run.step({"loss": value})
            with FakeTensorMode():
                step(run, {"loss": value}, failed)
    assert [type(error) for error in failed] == [UpdateOutputError] * len(failed), failed
    assert len(failed) >= 8
    assert {value for _, value in logged(tmp_path, "loss/U4")} == {1.0}


# ---------------------------------------------------------------------- JAX's


def kept_tracer(value: jax.Array) -> Any:
    seen: list[Any] = []
    jax.jit(lambda inner: (seen.append(inner), inner)[1])(value)
    return seen[0]


def deleted(value: jax.Array) -> jax.Array:
    value = value + 0
    value.delete()
    return value


def donated(value: jax.Array) -> jax.Array:
    value = value + 0
    jax.jit(lambda inner: inner + 1, donate_argnums=0)(value)
    return value


STRANGE_JAX = [
    kept_tracer, deleted, donated,
    lambda _: jax.random.key(0),
    lambda _: jax.random.split(jax.random.key(0), 3),
    lambda value: jax.ShapeDtypeStruct(value.shape, value.dtype),
    lambda value: value.astype(jnp.complex64),
    lambda value: sparse.BCOO.fromdense(value),
    lambda value: jax.core.ShapedArray(value.shape, value.dtype),
    lambda value: np.zeros(value.shape, jax.dtypes.float0),
    lambda _: nnx.Param("text"),
    lambda value: [value, value],
]  # fmt: skip


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("make", STRANGE_JAX)
def test_a_strange_jax_array_is_refused_at_the_call(make: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    for strange_at in ({0, 2}, {1, 4}):
        path = tmp_path / str(min(strange_at))
        if make is kept_tracer:
            jax.clear_caches()
        failed, taken = train(
            noether_jax, path, lambda values: make(jnp.asarray(values)), shape, strange_at, jnp.asarray
        )
        refused(failed, 2)
        assert taken == 4


@pytest.mark.parametrize("transform", [jax.jit, jax.grad, jax.vmap, jax.checkpoint, jax.value_and_grad, jax.make_jaxpr])
def test_a_step_inside_of_a_traced_function_is_refused_at_the_call(transform: Any, tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path, [every(2)]) as run:

        def function(value: jax.Array) -> jax.Array:
            run.step({"loss": value * 2})
            return value

        def logs(value: jax.Array) -> jax.Array:
            run.log({"loss": value * 2})
            return value

        given = jnp.ones(3) if transform is jax.vmap else jnp.float32(1)
        for _ in range(2):
            with pytest.raises(UpdateOutputError, match=r"'loss' is a tracer: .*run\.track"):
                transform(function)(given)
            if transform not in (jax.grad, jax.value_and_grad):  # where it has a value
                with pytest.raises(NoetherError, match=r"cannot log 'loss': .*has no value yet"):
                    transform(logs)(given)
            run.step({"loss": jnp.float32(3)})
    assert logged(tmp_path, "loss/U2") == [(2, 3.0)]


# ---------------------------------------------------------------------- values of one's own

STRANGE_OWN: list[Callable[[], Any]] = [
    lambda: np.ma.masked,
    lambda: np.ma.array([3.0], mask=[1]),
    lambda: np.datetime64("2020-01-01", "ns"),
    lambda: np.timedelta64(3, "ns"),
    lambda: np.array(["0.5"]),
    lambda: np.complex64(1),
    lambda: np.ones(2),
    lambda: np.array([(1, 2.0)], "i4,f4"),
    lambda: fake(torch.ones(())),
    lambda: freed(torch.ones(())),
    lambda: torch.ones((), device="meta"),
    lambda: torch.ones(2),
    lambda: torch.ones((), dtype=torch.complex64),
    lambda: masked(torch.ones(())),
    lambda: deleted(jnp.ones(())),
    lambda: jax.random.key(0),
    lambda: jnp.complex64(1),
    lambda: memoryview(b"a"),
    object,
]


@pytest.mark.filterwarnings("ignore::UserWarning")
@each_front_end
@pytest.mark.parametrize("make", STRANGE_OWN)
def test_a_strange_value_of_ones_own_is_refused_and_the_others_logged(
    front_end: Any, make: Any, tmp_path: Path
) -> None:
    with front_end.Run(tmp_path, [every(1)]) as run:
        with pytest.raises(NoetherError, match="'x'"):
            run.log({"a": 1.0, "x": make(), "b": 2.0})
        run.step({"loss": 1.0})
    entries = read_run(tmp_path).entries
    assert [{key: entry[key] for key in entry if "/" not in key} for entry in entries] == [
        {"epoch": 0, "update": 0, "sample": 0, "a": 1.0, "b": 2.0},
        {"epoch": 0, "update": 1, "sample": 1},
    ]


def test_random_mixtures_of_plain_and_strange_arrays_leave_the_others_right(tmp_path: Path) -> None:
    rng = random.Random(0)
    makers: list[Any] = [*REFUSED[:8], *STRANGE_TENSORS[:8]]
    failed: list[Any] = []
    sums: list[float] = []
    with noether_torch.Run(tmp_path, [{"every_n_updates": 5, "patterns": ["k"], "reduce": "sum"}]) as run:
        while len(sums) < 50:
            number = rng.randint(-9, 9)
            outputs: dict[str, Any] = {"k0": torch.tensor(float(number)), "k1": torch.full((3,), float(number))}
            is_strange = rng.random() < 0.4
            if is_strange:
                values = np.full(3, 1.0, np.float32)
                make = rng.choice(makers)
                strange = make(values) if make in REFUSED else make(torch.tensor(values))
                outputs[rng.choice(["k0", "k1", "k2"])] = strange
            assert step(run, outputs, failed) is not is_strange
            if not is_strange:
                sums.append(number)
    assert {type(error) for error in failed} == {UpdateOutputError}
    for key, size in (("k0", 1), ("k1", 3)):
        wanted = [(at, size * sum(sums[at - 5 : at])) for at in range(5, 51, 5)]
        assert logged(tmp_path, f"{key}/sum/U5") == wanted
