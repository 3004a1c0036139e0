"""Check that a loop's own step, replayed from what was recorded, gives what was recorded, in both frameworks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from torch import nn
from torch.nn import functional

import noether_jax
import noether_torch
from noether_core.parity.between_runs import Place, ReplayError, Step, find_culprit
from noether_core.probes import read_training
from noether_jax import replay as in_jax
from noether_torch import replay as in_torch

UPDATES = 4
PROBE = [{"kind": "ProbeCallback", "arrays": UPDATES}]


def batches(accumulation: int = 1, seed: int = 0) -> list[list[dict[str, np.ndarray]]]:
    drawn = np.random.default_rng(seed)
    return [
        [
            {"x": drawn.standard_normal((8, 4), np.float32), "y": drawn.integers(0, 3, 8).astype(np.int32)}
            for _ in range(accumulation)
        ]
        for _ in range(UPDATES)
    ]


def replayed(path: Path, step: Step, update: int) -> tuple[Mapping[str, Any], dict[str, np.ndarray]]:
    """Return what a step gives for what was recorded of an update, and what was recorded."""
    training = read_training(path)
    held = {key: training.array(update, key) for key in training.keys(update)}
    before = {key: training.array(update - 1, key) for key in training.keys(update - 1)} if update > 1 else {}
    carried = {key.removeprefix("opt/"): array for key, array in before.items() if key.startswith("opt/")}
    buffers = {name: array for name, array in carried.items() if "/" not in name and name != "count"}
    state = {name: array for name, array in carried.items() if name not in buffers}
    batch, params = (
        {key.partition("/")[2]: array for key, array in held.items() if key.startswith(stage)}
        for stage in ("data/", "param/")
    )
    computed = step(batch, params, state, buffers, update)
    return computed, {key: array for key, array in held.items() if not key.startswith(("data/", "param/"))}


def assert_replays(path: Path, step: Step) -> None:
    for update in (3, 1, 4, 2):  # in any order
        computed, recorded = replayed(path, step, update)
        assert list(computed) == list(recorded)
        for key, array in recorded.items():
            np.testing.assert_array_equal(computed[key], array, err_msg=f"{update} {key}")


# ---------------------------------------------------------------------- PyTorch


class Tied(nn.Module):
    """Hold what is to be put back: BatchNorm's buffers, a shared weight, a frozen one, one that gets no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4, momentum=None)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(4, 3).requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.second(self.norm(self.first(x)).relu()))


def torch_side(optimizer: Callable[[Any], Any], accumulation: int = 1) -> tuple[Any, Any, Any]:
    """Return a model, its optimizer and the loop's body."""
    torch.manual_seed(0)
    model = Tied()
    made = optimizer([each for each in model.parameters() if each.requires_grad])

    def train_step(batch: Mapping[str, torch.Tensor], place: Place) -> dict[str, torch.Tensor]:
        for group in made.param_groups:
            group["lr"] = 0.1 / place.update
        loss = functional.cross_entropy(model(batch["x"]), batch["y"].long())
        (loss / accumulation).backward()
        if place.is_last:
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            made.step()
            made.zero_grad()
        return {"total": loss, "half": loss / 2}

    return model, made, train_step


def train_torch(path: Path, optimizer: Callable[[Any], Any], accumulation: int = 1) -> None:
    model, made, train_step = torch_side(optimizer, accumulation)
    with noether_torch.Run(path, PROBE, accumulation_steps=accumulation) as run:
        run.probe(model, made)
        for update, parts in enumerate(batches(accumulation), 1):
            for number, part in enumerate(parts):
                batch = {name: torch.from_numpy(array) for name, array in part.items()}
                losses = train_step(batch, Place(update, number, number == accumulation - 1))
                run.step({"loss": losses["total"]}, batch=batch, losses=losses)


OPTIMIZERS = {
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1),
    "momentum": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True),
    "AdamW": lambda params: torch.optim.AdamW(params, amsgrad=True),
    "RMSprop": lambda params: torch.optim.RMSprop(params, momentum=0.5, centered=True),
    "Adagrad": lambda params: torch.optim.Adagrad(params, lr_decay=0.1),
    "Adamax": torch.optim.Adamax,
    "Adadelta": torch.optim.Adadelta,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_of_pytorch_gives_what_was_recorded(name: str, tmp_path: Path) -> None:
    accumulation = 2 if name == "AdamW" else 1
    train_torch(tmp_path / "run", OPTIMIZERS[name], accumulation)
    model, optimizer, train_step = torch_side(OPTIMIZERS[name], accumulation)
    assert_replays(tmp_path / "run", in_torch.replayable(train_step, model, optimizer))


def test_what_no_probe_records_of_an_optimizer_is_asked_for(tmp_path: Path) -> None:
    train_torch(tmp_path / "run", torch.optim.NAdam)
    model, optimizer, train_step = torch_side(torch.optim.NAdam)
    step = in_torch.replayable(train_step, model, optimizer)
    with pytest.raises(ReplayError, match=r"NAdam keeps 'mu_product' of 'first.weight', which was not recorded; give"):
        replayed(tmp_path / "run", step, 2)
    model, optimizer, train_step = torch_side(torch.optim.NAdam)

    def product(kept: dict[str, Any], place: Place) -> None:
        kept["mu_product"] = torch.tensor(1.0)
        for step in range(1, place.update):
            kept["mu_product"] *= 0.9 * (1 - 0.5 * 0.96 ** (step * 0.004))

    assert_replays(tmp_path / "run", in_torch.replayable(train_step, model, optimizer, complete=product))


def test_gradients_of_the_other_side_take_the_place_of_pytorchs_own(tmp_path: Path) -> None:
    model, optimizer, train_step = torch_side(lambda params: torch.optim.SGD(params, lr=1.0))
    step = in_torch.replayable(train_step, model, optimizer)
    params = {name: np.zeros(value.shape, np.float32) for name, value in in_torch.parameters_of(model).items()}
    grads = {"first.bias": np.full(4, 0.1, np.float32), "unused": np.full(2, 0.1, np.float32)}
    computed = step(batches()[0][0], params, {}, {}, 1, grads=grads)
    for name, grad in grads.items():
        np.testing.assert_array_equal(computed[f"grad/{name}"], grad)
        np.testing.assert_allclose(computed[f"update/{name}"], -0.1 * grad, rtol=1e-6)
    assert not any(parameter._post_accumulate_grad_hooks for parameter in model.parameters())


# ---------------------------------------------------------------------- JAX


class Convolved(nnx.Module):
    """Hold kernels that are recorded transposed, running statistics, and arrays without names of PyTorch's."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(1, 3, (3,), rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(nnx.relu(self.norm(self.conv(x[..., None]))).reshape(len(x), -1))


def jax_side(optimizer: Any) -> tuple[Any, Any, Any, Any]:
    """Return parameters, running statistics, the optimizer's state, and the loop's compiled step."""
    graph, params, statistics = nnx.split(Convolved(), nnx.Param, nnx.BatchStat)

    def gradients(params: Any, statistics: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> Any:
            model = nnx.merge(graph, params, jax.tree.map(jnp.array, statistics))
            loss = optax.softmax_cross_entropy_with_integer_labels(model(batch["x"]), batch["y"]).mean()
            return loss, nnx.state(model, nnx.BatchStat)

        (loss, moved), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        return grads, loss, moved

    @jax.jit
    def train_step(params: Any, statistics: Any, state: Any, parts: Any, due: Any, given: Any = None) -> Any:
        summed, outputs = None, []
        for part in parts:
            grads, loss, statistics = gradients(params, statistics, part)
            summed = grads if summed is None else jax.tree.map(jnp.add, summed, grads)
            outputs.append(noether_jax.probe(due, batch=part, losses=loss))
        grads = summed if given is None else given
        updates, state = optimizer.update(grads, state, params)
        last = noether_jax.probe(due, params=params, grads=grads, updates=updates, opt_state=state, buffers=statistics)
        outputs[-1] = {"first": outputs[-1], "last": last}
        return optax.apply_updates(params, updates), statistics, state, outputs

    return params, statistics, optimizer.init(params), train_step


def train_jax(path: Path, optimizer: Any, accumulation: int = 1) -> None:
    params, statistics, state, train_step = jax_side(optimizer)
    with noether_jax.Run(path, PROBE, accumulation_steps=accumulation) as run:
        for parts in batches(accumulation):
            params, statistics, state, outputs = train_step(params, statistics, state, parts, run.probes_due)
            for each in outputs:
                for probed in each.values():
                    run.add_probes(probed)
                run.step({"loss": 0.0})


def replayable_of(optimizer: Any) -> Step:
    params, statistics, state, train_step = jax_side(optimizer)

    def step(*, batch: Any, params: Any, opt_state: Any, buffers: Any, due: Any, grads: Any, **_: Any) -> Any:
        parts = batch if isinstance(batch, list) else [batch]
        *_, outputs = train_step(params, buffers, opt_state, parts, due, grads)
        return outputs if isinstance(batch, list) else outputs[0]

    return in_jax.replayable(step, params, state, statistics)


@pytest.mark.parametrize(
    ("optimizer", "accumulation"),
    [
        (optax.sgd(0.1, momentum=0.9), 1),
        (optax.adadelta(0.5), 1),
        (optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(optax.linear_schedule(0.1, 0.0, 4))), 2),
    ],
    ids=["momentum", "Adadelta", "chain"],
)
def test_a_step_of_jax_gives_what_was_recorded(optimizer: Any, accumulation: int, tmp_path: Path) -> None:
    train_jax(tmp_path / "run", optimizer, accumulation)
    assert_replays(tmp_path / "run", replayable_of(optimizer))


def test_gradients_of_the_other_side_take_the_place_of_jaxs_own() -> None:
    step = replayable_of(optax.sgd(1.0))
    kernel = np.random.default_rng(0).standard_normal((3, 1, 3), np.float32)
    computed = step(batches()[0][0], {"conv.weight": kernel}, {}, {}, 1, grads={"conv.weight": kernel})
    np.testing.assert_array_equal(computed["grad/conv.weight"], kernel)
    np.testing.assert_array_equal(computed["update/conv.weight"], -kernel)
    np.testing.assert_array_equal(computed["update/head.weight"], np.zeros((3, 12)))


def splitting(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fused array in two parts, one reversed, and an array of which half is made up."""
    first, second = jnp.split(arrays["fused"], 2)
    return {"a": first, "b": second[::-1], "biases": jnp.stack([arrays["bias"], 0 * arrays["bias"]])}


def test_names_that_split_and_join_are_undone_and_those_that_compute_are_not() -> None:
    tree = {"bias": jnp.zeros(2), "fused": jnp.zeros(4)}
    seen: dict[str, Any] = {}

    def train_step(*, params: Any, due: Any, **_: Any) -> Any:
        seen.update(jax.tree.map(np.asarray, params))
        return noether_jax.probe(due, losses=1.0)

    step = in_jax.replayable(train_step, tree, (), names=splitting)
    given = {"a": np.array([1.0, 2.0]), "b": np.array([4.0, 3.0]), "biases": np.array([[5.0, 6.0], [0.0, 0.0]])}
    step({}, given, {}, {}, 1)
    assert {name: array.tolist() for name, array in seen.items()} == {"bias": [5, 6], "fused": [1, 2, 3, 4]}
    with pytest.raises(ReplayError, match=r"the values of 'biases' do not go back into the tree.*load=function"):
        step({}, {**given, "biases": np.ones((2, 2))}, {}, {}, 1)


# ---------------------------------------------------------------------- wrong uses


def silent(**_: Any) -> Any:
    return {"loss": 1.0}


@pytest.mark.parametrize(
    ("params", "buffers", "says"),
    [
        (
            {"weigth": np.ones((1, 2))},
            {},
            r"parameters 'weigth', which the tree of parameters has not: it has 'weight'",
        ),
        ({"weight": np.ones((1, 2))}, {"norm.mean": np.ones(1)}, r"buffers 'norm.mean', which"),
        (
            {"weight": np.ones((2, 1))},
            {},
            r"'weight' of shape \(2, 1\), and its tree has \(1, 2\): were arrays kept whole\?",
        ),
        ({"weight": np.ones((1, 2))}, {}, r"nothing was probed in it; let it return what `probe\(due, …\)` returns"),
    ],
)
def test_what_does_not_fit_a_step_of_jax_is_said(params: Any, buffers: Any, says: str) -> None:
    step = in_jax.replayable(silent, {"kernel": jnp.zeros((2, 1))}, ())
    with pytest.raises(ReplayError, match=says):
        step({}, params, {}, buffers, 1)


@pytest.mark.parametrize(
    ("params", "grads", "says"),
    [
        ({"wieght": np.ones(1)}, None, r"parameters 'wieght', which this Linear has not: it has 'weight', 'bias'"),
        ({"bias": np.ones(2)}, None, r"'bias' of shape \(2,\), and this model's is \(1,\): were arrays kept whole\?"),
        ({"bias": np.ones(1)}, {"b": np.ones(1)}, r"gradients of 'b', which this Linear has not"),
    ],
)
def test_what_does_not_fit_a_step_of_pytorch_is_said(params: Any, grads: Any, says: str) -> None:
    model = nn.Linear(2, 1)
    step = in_torch.replayable(print, model, torch.optim.SGD(model.parameters()))
    with pytest.raises(ReplayError, match=says):
        step({}, params, {}, {}, 1, grads)


# ---------------------------------------------------------------------- from two run directories to the culprit

WIDTHS = (4, 5, 3)


def torch_layers(decay: float) -> tuple[Any, Any, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(*widths) for widths in pairwise(WIDTHS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=decay)

    def train_step(batch: Mapping[str, torch.Tensor], place: Place) -> torch.Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch["x"]), batch["y"].long())
        loss.backward()
        optimizer.step()
        return loss

    return model, optimizer, train_step


def jax_layers(scale: float) -> tuple[Any, Any, Any]:
    optimizer = optax.adamw(0.01, weight_decay=0.1)
    params = {
        f"layer{at}": {"kernel": jnp.zeros(widths), "bias": jnp.zeros(widths[1])}
        for at, widths in enumerate(pairwise(WIDTHS))
    }

    @jax.jit
    def train_step(params: Any, state: Any, batch: Any, due: Any, given: Any = None) -> Any:
        def loss_of(params: Any) -> Any:
            x = batch["x"]
            for layer in params.values():
                x = x @ layer["kernel"] + layer["bias"] * scale
            return optax.softmax_cross_entropy_with_integer_labels(x, batch["y"]).mean()

        loss, own = jax.value_and_grad(loss_of)(params)
        grads = own if given is None else given
        updates, state = optimizer.update(grads, state, params)
        pieces = {"batch": batch, "params": params, "losses": loss, "grads": grads}
        probes = noether_jax.probe(due, **pieces, updates=updates, opt_state=state)
        return optax.apply_updates(params, updates), state, probes

    return params, optimizer.init(params), train_step


@pytest.mark.parametrize(("decay", "scale", "culprit"), [(0.1, 1.1, "forward"), (0.2, 1.0, "optimizer")])
def test_the_culprit_is_found_from_two_directories_whose_names_differ(
    decay: float, scale: float, culprit: str, tmp_path: Path
) -> None:
    a, b = tmp_path / "torch", tmp_path / "jax"
    model, optimizer, torch_step = torch_layers(decay)
    tree, state, jax_step = jax_layers(scale)
    weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    params = loaded(tree, weights)
    with noether_torch.Run(a, PROBE) as run:
        run.probe(model, optimizer)
        for update, (part,) in enumerate(batches(), 1):
            batch = {name: torch.from_numpy(array) for name, array in part.items()}
            loss = torch_step(batch, Place(update))
            run.step({"loss": loss}, batch=batch, losses=loss)
    with noether_jax.Run(b, PROBE) as run:
        for (part,) in batches():
            params, state, probes = jax_step(params, state, part, run.probes_due)
            run.step({"loss": 0.0, **probes})
    model, optimizer, torch_step = torch_layers(decay)
    of_torch = in_torch.replayable(torch_step, model, optimizer)
    tree, state, jax_step = jax_layers(scale)
    of_jax = in_jax.replayable(
        lambda *, batch, params, opt_state, due, grads, **_: jax_step(params, opt_state, batch, due, grads), tree, state
    )
    assert find_culprit(of_torch, of_jax, a, b).culprit == culprit
    assert find_culprit(of_jax, of_torch, b, a).culprit == culprit
    assert find_culprit(of_torch, of_jax, a, a).sentence.startswith(
        "There is nothing to transplant: Same through update 4"
    )


def loaded(tree: Any, weights: Mapping[str, np.ndarray]) -> Any:
    values = iter(weights.values())
    return {name: {"kernel": jnp.asarray(next(values).T), "bias": jnp.asarray(next(values))} for name in tree}
