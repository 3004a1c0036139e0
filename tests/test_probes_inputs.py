"""Whatever a loop hands to `probe`: values of every dtype and form, pieces that are missing, shared, wrapped or of one name."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
import torch
from flax import linen, nnx
from torch import nn

import noether_jax
import noether_torch
from noether_core import NoetherError
from noether_core.probes import Due, Probed, read_training, statistics_of
from noether_core.probes.probed import HostProbed
from noether_core.probes.statistics import REALS
from noether_jax.measuring import measured
from noether_jax.probes import stage_values
from noether_torch.measuring import measured as torch_measured
from noether_torch.numpy_arrays import to_array, to_tensor
from noether_torch.probes import stage_values as torch_stage_values

EVERYTHING = Due(statistics=True, array_limit=2**20)
Array = np.ndarray[Any, Any]

# ---------------------------------------------------------------------- values

DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "int4", "uint4"),
]
OF_JAX_ALONE = ("int4", "uint4")
SHAPES: list[tuple[int, ...]] = [(), (0,), (3, 0), (1,), (2, 3), (3, 4, 5)]


def drawn(dtype: str, shape: tuple[int, ...]) -> Array:
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    values = np.random.default_rng(len(shape)).standard_normal(shape) * 3
    with np.errstate(all="ignore"):
        return np.asarray(np.abs(values) if dtype[0] == "u" or "e8m0" in dtype else values).astype(kind)


def on_host(probed: Probed) -> HostProbed:
    return probed.on_host(
        [to_array(leaf) if isinstance(leaf, torch.Tensor) else np.asarray(leaf) for leaf in probed.leaves()]
    )


def check(probed: Probed, array: Array) -> None:
    """Compare what was probed of an array with what NumPy says of it."""
    found, wanted = on_host(probed), statistics_of(array)
    assert f"{int(found.fingerprints[0]):016x}" == wanted.fingerprint
    np.testing.assert_allclose(found.reals[0], [getattr(wanted, name) for name in REALS], rtol=1e-9, atol=1e-12)
    whole = np.stack([array.real, array.imag], -1) if array.dtype.kind == "c" else array
    (kept,) = found.arrays.values()
    assert kept.shape == whole.shape == found.shapes["data/a"]
    np.testing.assert_array_equal(kept.astype(np.float64), whole.astype(np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_shape_is_measured_alike(dtype: str) -> None:
    for shape in SHAPES:
        array = drawn(dtype, shape)
        with jax.enable_x64(True):
            on_device = jnp.asarray(array)
        check(measured({"data/a": on_device}, EVERYTHING), array)
        check(measured({"data/a": array}, EVERYTHING), array)
        if dtype not in OF_JAX_ALONE:
            check(torch_measured({"data/a": to_tensor(array)}, EVERYTHING), array)
            check(torch_measured({"data/a": array}, EVERYTHING), array)


@pytest.mark.parametrize(
    "value", [0.1, 3, True, 1 - 2j, np.ones(3, ">f4"), np.longdouble([1, 2]), np.ones((3, 2)).T], ids=str
)
def test_a_number_or_array_of_python_is_the_same_to_both(value: Any) -> None:
    array = np.asarray(value) if np.asarray(value).dtype.itemsize <= 8 else np.asarray(value).astype(complex).real
    array = np.asarray(value) if isinstance(value, complex) else array
    check(measured({"data/a": value}, EVERYTHING), array)
    check(torch_measured({"data/a": value}, EVERYTHING), array)


ODD: list[list[float]] = [
    [np.nan],
    [np.inf, -np.inf],
    [np.nan, 1, -np.inf],
    [1e308, 1e308],
    [1e-310],
    [-0.0, 0.0],
    [5e-324, 65504.0],
]


@pytest.mark.parametrize("values", ODD, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_what_is_not_finite_is_measured_alike(values: list[float], dtype: str) -> None:
    with np.errstate(all="ignore"):
        array = np.array(values).astype(dtype)
    check(measured({"data/a": array}, EVERYTHING), array)
    check(torch_measured({"data/a": torch.from_numpy(array)}, EVERYTHING), array)


TENSORS: dict[str, Callable[[], torch.Tensor]] = {
    "transposed": lambda: torch.arange(24.0).reshape(4, 6).T,
    "strided": lambda: torch.arange(24.0).reshape(4, 6)[::2, 1:],
    "expanded": lambda: torch.ones(3, 1).expand(3, 5),
    "conjugate": lambda: torch.randn(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
    "computed": lambda: torch.ones(3, requires_grad=True) * 2,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "of inference": torch.inference_mode()(lambda: torch.ones(3) * 2),
    "of several lengths": lambda: torch.nested.nested_tensor([torch.ones(3), torch.zeros(2)], layout=torch.jagged),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning")
@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_any_layout_is_what_it_holds(name: str) -> None:
    tensor = TENSORS[name]()
    is_sparse = tensor.layout is not torch.strided and not tensor.is_nested
    dense = tensor.to_dense() if is_sparse else tensor.values() if tensor.is_nested else tensor
    check(
        torch_measured({"data/a": tensor}, EVERYTHING), dense.detach().resolve_conj().resolve_neg().contiguous().numpy()
    )


@pytest.mark.parametrize("framework", [noether_jax, noether_torch], ids=["jax", "torch"])
def test_what_is_probed_stays_though_the_loop_changes_it(framework: Any, tmp_path: Path) -> None:
    array, tensor = np.ones(3, np.float32), torch.ones(3)
    with framework.Run(tmp_path, [{"kind": "ProbeCallback"}]) as run:
        given = {"array": array, **({"tensor": tensor} if framework is noether_torch else {})}
        probed = framework.probe(run.probes_due, batch=given)
        array[:] = tensor[:] = 7
        run.step(probed)
    training = read_training(tmp_path)
    for key in training.keys(1):
        np.testing.assert_array_equal(training.array(1, key), np.ones(3))


def test_arrays_may_be_donated_after_they_were_probed(tmp_path: Path) -> None:
    step = jax.jit(lambda params: jax.tree.map(lambda each: each * 2, params), donate_argnums=0)
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    with noether_jax.Run(tmp_path, [{"kind": "ProbeCallback"}]) as run:
        for _ in range(3):
            probed = noether_jax.probe(run.probes_due, params=params)
            params = step(params)
            run.step(probed)
    training = read_training(tmp_path)
    for update in (1, 2, 3):
        np.testing.assert_array_equal(training.array(update, "param/dense.bias"), np.full(3, 2.0 ** (update - 1)))


# ---------------------------------------------------------------------- pieces: of both frameworks

Pair = namedtuple("Pair", "x y")
ONE = np.ones(2, np.float32)


@dataclasses.dataclass
class Record:
    x: Any
    y: Any


BATCHES: dict[str, tuple[Any, list[str]]] = {
    "text and nothing": (
        {"x": ONE, "text": "abc", "none": None, "names": ["a", "b"], "array": np.array(["a"]), "objects": np.array([None])},
        ["x"],
    ),
    "a named tuple": (Pair(ONE, 3), ["x", "y"]),
    "a record": (Record(ONE, {"z": ONE}), ["x", "y.z"]),
    "a record in a list": ([Record(ONE, ONE)], ["0.x", "0.y"]),
    "numbers": ([1, 2.5, True, np.float32(3), np.int64(4)], ["0", "1", "2", "3", "4"]),
    "no key": ({"": ONE}, ["total"]),
    "slashes": ({"a/b": ONE, "a": {"c": ONE}}, ["a.b", "a.c"]),
    "odd names": ({"ü\n\x1b[31m": ONE, "__metadata__": ONE, " ": ONE}, ["ü\n\x1b[31m", "__metadata__", " "]),
    "a tensor": (torch.ones(2), ["total"]),
}  # fmt: skip


@pytest.mark.parametrize("values_of", [stage_values, torch_stage_values], ids=["jax", "torch"])
@pytest.mark.parametrize("name", BATCHES)
def test_of_a_batch_its_numbers_are_read_by_name(name: str, values_of: Any) -> None:
    batch, wanted = BATCHES[name]
    assert sorted(values_of(batch=batch)) == sorted(f"data/{each}" for each in wanted)


@pytest.mark.parametrize("values_of", [stage_values, torch_stage_values], ids=["jax", "torch"])
@pytest.mark.parametrize(
    "batch", [{"a/b": ONE, "a": {"b": ONE}}, {"a.b": ONE, "a": {"b": ONE}}, {"": ONE, "total": ONE}], ids=str
)
def test_two_arrays_of_one_name_are_refused(batch: Any, values_of: Any) -> None:
    with pytest.raises(NoetherError, match=r"probe got two arrays '(a\.b|total)' in data"):
        values_of(batch=batch)


def test_accumulation_steps_lose_no_key_that_looks_like_theirs(tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path, [{"kind": "ProbeCallback"}], accumulation_steps=2) as run:
        for number in range(2):
            run.step(noether_jax.probe(run.probes_due, batch={"x": ONE + number, "x@1": ONE - number}))
    keys = read_training(tmp_path).keys(1)
    assert keys == ["data/x", "data/x@1", "data/x@1@1", "data/x@1@1@1"]


@pytest.mark.parametrize("framework", [noether_jax, noether_torch], ids=["jax", "torch"])
def test_updates_may_have_other_keys_and_shapes(framework: Any, tmp_path: Path) -> None:
    with framework.Run(tmp_path, [{"kind": "ProbeCallback", "every_n_updates": 1, "arrays": 5}]) as run:
        for i in range(5):
            grads = {"w": np.ones((i + 1, 2), np.float32) if i != 3 else None}
            loss = float("nan") if i == 2 else i
            run.step(framework.probe(run.probes_due, batch={f"x{i % 2}": np.ones(i)}, losses=loss, grads=grads))
    training = read_training(tmp_path)
    assert not training.problems
    assert [training.shape(update, "grad/w") for update in training.updates()] == [(1, 2), (2, 2), (3, 2), None, (5, 2)]
    assert training.keys(4) == ["data/x1", "loss/total"]
    assert [np.isnan(each) for each in training.statistics_columns("loss/total")[1].mean] == [
        False,
        False,
        True,
        False,
        False,
    ]


# ---------------------------------------------------------------------- pieces: of PyTorch


def model_of() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def run_torch(path: Path, model: nn.Module, optimizer: Any, x: Any = None) -> list[str]:
    """Train two steps, and return the keys that are not of activations, data or losses."""
    x = torch.ones(2, 3) if x is None else x
    with noether_torch.Run(path, [{"kind": "ProbeCallback", "every_n_updates": 1}]) as run:
        run.probe(model, optimizer)
        for _ in range(2):
            optimizer.zero_grad()
            loss = model(x).abs().sum()
            loss.backward()
            optimizer.step()
            run.step({"loss": loss}, batch=x, losses=loss)
    training = read_training(path)
    assert not training.problems
    for key in training.keys(2):
        training.array(2, key)
    return list(training.keys(2))


def of(stage: str, keys: list[str]) -> list[str]:
    return [key.partition("/")[2] for key in keys if key.startswith(f"{stage}/")]


NAMES = ["0.weight", "0.bias", "1.weight", "1.bias"]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Any) -> Any:
        return self.head(self.embed(x))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        return self.b(self.a(x))


class NamedModule(nn.Module):
    """Has a module of its own that is called as wrappers call what they wrap."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.weight = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Any) -> Any:
        return self.module(x) * self.weight


class Wrapper(nn.Module):
    def __init__(self, wrapped: nn.Module) -> None:
        super().__init__()
        self.module = wrapped

    def forward(self, x: Any) -> Any:
        return self.module(x)


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, dtype=torch.complex64))

    def forward(self, x: Any) -> Any:
        return x * self.weight


def frozen() -> nn.Module:
    model = model_of()
    model[0].requires_grad_(False)
    return model


def deep() -> nn.Module:
    model: nn.Module = nn.Linear(3, 3)
    for _ in range(100):
        model = nn.Sequential(model)
    return model


WORDS = torch.tensor([[1, 2, 1]])
MODELS: dict[
    str, tuple[Callable[[], nn.Module], list[str], list[str], Any]
] = {  # parameters, those with gradients, input
    "frozen": (frozen, NAMES, NAMES[2:], None),
    "tied": (Tied, ["embed.weight"], ["embed.weight"], WORDS),
    "shared": (Shared, ["a.weight", "a.bias"], ["a.weight", "a.bias"], None),
    "compiled": (lambda: torch.compile(model_of(), backend="eager"), NAMES, NAMES, None),
    "wrapped": (lambda: Wrapper(Wrapper(model_of())), NAMES, NAMES, None),
    "a module named so": (NamedModule, *[["weight", "module.weight", "module.bias"]] * 2, None),
    "complex": (Complex, ["weight"], ["weight"], None),
    "deep": (deep, *[[f"{'0.' * 100}weight", f"{'0.' * 100}bias"]] * 2, None),
    "sparse": (lambda: nn.Embedding(10, 3, sparse=True), ["weight"], ["weight"], WORDS),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_of_any_kind_is_probed_by_its_own_names(name: str, tmp_path: Path) -> None:
    make, parameters, trained, x = MODELS[name]
    model = make()
    kind = torch.optim.SparseAdam if name == "sparse" else torch.optim.Adam
    keys = run_torch(tmp_path, model, kind(model.parameters()), x)
    assert of("param", keys) == parameters
    assert of("grad", keys) == trained
    assert {each for each in of("opt", keys) if each.startswith("mu/")} == {f"mu/{each}" for each in trained}


def test_an_optimizers_state_is_found_by_order_where_parameters_are_copies() -> None:
    model = model_of()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3)).sum().backward()
    before = {name: each.detach().clone() for name, each in model.named_parameters()}
    optimizer.step()
    wanted = ["count", *(f"{field}/{name}" for field in ("mu", "nu") for name in NAMES)]
    for params in (
        before,
        model,
        dict(model.named_parameters()),
        {f"module.{name}": each for name, each in before.items()},
    ):
        assert of("opt", list(torch_stage_values(params=params, opt_state=optimizer))) == wanted
    with pytest.raises(NoetherError, match="probe got a Adam as opt_state, which keeps its state by parameter"):
        torch_stage_values(params={"other": torch.ones(2)}, opt_state=optimizer)
    given = {"mu/0.weight": torch.ones(2), "nu": {"0.weight": torch.ones(2)}, "lr": 0.1, "name": "adam"}
    assert of("opt", list(torch_stage_values(opt_state=given))) == ["mu/0.weight", "nu/0.weight", "lr"]


def test_a_model_whose_parameters_are_not_made_yet_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.LazyLinear(2))
    run = noether_torch.Run(tmp_path, [{"kind": "ProbeCallback"}])
    with pytest.raises(NoetherError, match=r"'0\.weight', '0\.bias' are not made yet; call the model once"):
        run.probe(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_gradients_that_are_none_are_left_out() -> None:
    model = model_of()
    assert list(torch_stage_values(grads=model)) == []
    assert list(torch_stage_values(grads={"a": None, "b": torch.ones(2)})) == ["grad/b"]
    grads = torch.autograd.grad(model(torch.ones(2, 3)).sum(), list(model.parameters()))
    assert of("grad", list(torch_stage_values(grads=grads))) == ["0", "1", "2", "3"]
    with pytest.raises(NoetherError, match="probe got a generator in param, which can be read once; give the module"):
        torch_stage_values(params=model.parameters())


# ---------------------------------------------------------------------- pieces: of JAX


class Net(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.linear, self.norm = nnx.Linear(2, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)
        self.dropout, self.kept = nnx.Dropout(0.5, rngs=rngs), nnx.Cache(jnp.ones(2))

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.norm(self.linear(x)))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        return linen.BatchNorm(use_running_average=False)(linen.Dense(3)(x))


def sorted_of(stage: str, values: Any) -> list[str]:
    return sorted(of(stage, list(values)))


def test_each_stage_has_its_own_of_flaxs_variables() -> None:
    model = Net()
    params = sorted(["linear.weight", "linear.bias", "norm.weight", "norm.bias"])
    statistics = ["norm.running_mean", "norm.running_var"]
    for given in (model, nnx.state(model), nnx.state(model, nnx.Param)):
        assert sorted_of("param", stage_values(params=given)) == params
    for given in (model, nnx.state(model), nnx.state(model, nnx.BatchStat)):
        assert sorted_of("opt", stage_values(buffers=given)) == statistics
    variables = Linen().init(jax.random.key(0), jnp.ones((2, 2)))
    names = sorted(["Dense_0.weight", "Dense_0.bias", "BatchNorm_0.weight", "BatchNorm_0.bias"])
    for given in (variables, variables["params"], {"params": variables["params"]}):
        assert sorted_of("param", stage_values(params=given)) == names
    wanted = ["BatchNorm_0.running_mean", "BatchNorm_0.running_var"]
    for given in (variables, {"batch_stats": variables["batch_stats"]}, variables["batch_stats"]):
        assert sorted_of("opt", stage_values(buffers=given)) == wanted


def test_an_nnx_step_is_probed_with_all_that_a_model_has() -> None:
    model = Net()
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model: Net, optimizer: Any, x: Any, due: Due) -> dict[str, Any]:
        loss, grads = nnx.value_and_grad(lambda model: model(x).sum())(model)
        optimizer.update(model, grads)
        pieces: Any = {"params": nnx.state(model, nnx.Param), "grads": grads, "losses": loss}
        return noether_jax.probe(due, **pieces, opt_state=optimizer.opt_state, buffers=nnx.state(model, nnx.BatchStat))

    keys = list(step(model, optimizer, jnp.ones((4, 2)), EVERYTHING)["probes"].keys)
    assert (
        sorted(of("grad", keys))
        == sorted(of("param", keys))
        == ["linear.bias", "linear.weight", "norm.bias", "norm.weight"]
    )
    wanted = ["count", *(f"{field}/{name}" for field in ("mu", "nu") for name in of("param", keys))]
    assert sorted(of("opt", keys)) == sorted([*wanted, "norm.running_mean", "norm.running_var"])


def test_partitioned_parameters_are_laid_out_as_others() -> None:
    params = {"dense": {"kernel": linen.Partitioned(jnp.ones((2, 3)), names=("rows", None))}}
    found = stage_values(params=params, opt_state=optax.adam(0.1).init(params))
    assert {key: value.shape for key, value in found.items() if key != "opt/count"} == {
        "param/dense.weight": (3, 2),
        "opt/mu/dense.weight": (3, 2),
        "opt/nu/dense.weight": (3, 2),
    }


def test_names_that_would_become_one_stay_apart() -> None:
    params = {"m": {"kernel": jnp.ones((2, 3)), "scale": jnp.ones(3), "embedding": jnp.ones(2)}}
    assert sorted_of("param", stage_values(params=params)) == ["m.embedding", "m.scale", "m.weight"]
    params["m"]["weight"] = jnp.ones(4)
    found = noether_jax.probe(EVERYTHING, params=params)["probes"]
    assert sorted(of("param", list(found.keys))) == ["m.embedding", "m.kernel", "m.scale", "m.weight"]


def test_arrays_of_several_devices_are_probed_together() -> None:
    first, *_, last = jax.devices()
    params = {"a": jax.device_put(jnp.ones(3), first), "b": jax.device_put(jnp.ones(3), last)}
    found = on_host(noether_jax.probe(EVERYTHING, params=params)["probes"])
    assert found.fingerprints[0] == found.fingerprints[1]
    probe = jax.jit(lambda x: noether_jax.probe(EVERYTHING, batch={"traced": x, "known": params["a"]}))
    assert on_host(probe(jnp.ones(3))["probes"]).fingerprints.tolist() == found.fingerprints.tolist()


def test_what_has_no_gradient_and_random_keys_are_left_out() -> None:
    params = {"a": jnp.ones(2), "i": jnp.arange(3)}
    grads = jax.grad(lambda params: params["a"].sum(), allow_int=True)(params)  # of an int it is of dtype float0
    assert list(stage_values(grads=grads)) == ["grad/a"]
    assert list(stage_values(batch={"x": ONE, "key": jax.random.key(0)})) == ["data/x"]


def test_probes_may_be_made_in_a_scan() -> None:
    one = partial(noether_jax.probe, EVERYTHING)
    _, found = jax.lax.scan(lambda carry, x: (carry, one(losses=x)), 0, jnp.ones(3))
    assert found["probes"].arrays["loss/total"].shape == (3,)


def test_averaged_weights_are_buffers_though_they_are_parameters() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    averages = jax.tree.map(jnp.copy, nnx.state(model))
    found = stage_values(buffers={"ema": averages})
    assert sorted(found) == ["opt/ema.bias", "opt/ema.weight"]
    assert not stage_values(buffers=model)  # it has no statistics
