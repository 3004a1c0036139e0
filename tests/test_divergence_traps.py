"""Traps in correct pairs: rounding makes a large difference there, and a real bug at the same key is found all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import optax
import pytest
import torch
from divergence_trainings import Arrays, Case, adam, adamw, in_jax, in_torch, noise_of, normal, nudged, sgd

from noether_core.parity.divergence import MemoryTraining, Noise, compare
from noether_core.parity.divergence.distance import measure

UPDATES = 6
RECTIFIED = 9  # updates, of which RAdam rectifies the last four


def squared(prediction: Any, target: Any) -> Any:
    return ((prediction - target) ** 2).mean()


# a bias before a norm over the batch: its gradient is zero but for rounding


def with_batch_norm(ops: ModuleType, p: Any, batch: Any) -> Any:
    hidden = batch["x"] @ p["first.weight"].T + p["first.bias"]
    mean = hidden.mean(0)
    var = ((hidden - mean) ** 2).mean(0)
    normal = (hidden - mean) / ops.sqrt(var + 1e-5)
    prediction = ops.tanh(normal) @ p["second.weight"].T
    acts = {"first": hidden, "norm": normal, "second": prediction}
    return acts, squared(prediction, batch["y"])


def running_statistics(unbiased: bool = True) -> Callable[[Any, Any], Arrays]:
    def running(before: Arrays, step: Arrays) -> Arrays:
        hidden = step["act/first"]
        var = hidden.var(0, ddof=1 if unbiased else 0)
        old = before.get("opt/norm.running_var", np.ones(len(var), np.float32))
        return {"opt/norm.running_var": (0.9 * old + 0.1 * var).astype(np.float32)}

    return running


@cache
def null_bias() -> Case:
    generator = np.random.default_rng(1)
    params = {
        "first.weight": normal(generator, 12, 6),
        "first.bias": normal(generator, 12),
        "second.weight": normal(generator, 2, 12),
    }
    batches = [{"x": normal(generator, 24, 6), "y": normal(generator, 24, 2)} for _ in range(UPDATES)]
    return Case(with_batch_norm, params, batches, adam(1e-2), running=running_statistics())


# the same inside of a key: the bias of keys in a fused query-key-value projection


def attention(ops: ModuleType, p: Any, batch: Any) -> Any:
    fused = batch["x"] @ p["qkv.weight"].T + p["qkv.bias"]
    query, key, value = fused[..., :8], fused[..., 8:16], fused[..., 16:]
    scores = ops.einsum("bqd,bkd->bqk", query, key) / 8**0.5
    weights = ops.exp(scores - 5.0)
    weights = weights / weights.sum(-1)[..., None]
    mixed = ops.einsum("bqk,bkd->bqd", weights, value)
    prediction = mixed @ p["out.weight"].T
    return {"qkv": fused, "mixed": mixed, "out": prediction}, squared(prediction, batch["y"])


@cache
def fused_null() -> Case:
    generator = np.random.default_rng(2)
    params = {
        "qkv.weight": normal(generator, 24, 8, scale=0.4),
        "qkv.bias": normal(generator, 24, scale=0.1),
        "out.weight": normal(generator, 3, 8),
    }
    batches = [{"x": normal(generator, 8, 5, 8), "y": normal(generator, 8, 5, 3)} for _ in range(UPDATES)]
    return Case(attention, params, batches, adam(1e-2))


# one element of Adam whose gradient nearly cancels


def linear(ops: ModuleType, p: Any, batch: Any) -> Any:
    prediction = batch["x"] @ p["weight"].T
    return {"prediction": prediction}, squared(prediction, batch["y"])


@cache
def one_element() -> Case:
    generator = np.random.default_rng(3)
    params = {"weight": normal(generator, 4, 16)}
    batches = [{"x": normal(generator, 32, 16), "y": normal(generator, 32, 4)} for _ in range(UPDATES)]
    first = batches[0]
    rest = first["x"].astype(np.float64) @ params["weight"].T.astype(np.float64) - first["y"]
    column = first["x"][:, 3].astype(np.float64)
    first["y"][:, 2] += (column * (rest[:, 2] @ column) / (column @ column)).astype(
        np.float32
    )  # so that its gradient cancels
    return Case(linear, params, batches, adam(1e-3))


# pre-activations that are zero but for rounding


def relu(ops: ModuleType, p: Any, batch: Any) -> Any:
    before = batch["x"] @ p["first.weight"].T + p["first.bias"]
    hidden = ops.maximum(before, 0 * before)
    prediction = hidden @ p["second.weight"].T
    return {"first": before, "relu": hidden, "second": prediction}, squared(prediction, batch["y"])


@cache
def kink() -> Case:
    generator = np.random.default_rng(4)
    weight = normal(generator, 32, 24)
    batches = [{"x": normal(generator, 64, 24), "y": normal(generator, 64, 2)} for _ in range(UPDATES)]
    bias = -np.einsum("ui,ui->u", weight.astype(np.float64), batches[0]["x"][:32].astype(np.float64))
    params = {"first.weight": weight, "first.bias": bias.astype(np.float32), "second.weight": normal(generator, 2, 32)}
    return Case(relu, params, batches, sgd(1e-3))


# a scalar key whose gradient crosses zero


def with_scalar(ops: ModuleType, p: Any, batch: Any) -> Any:
    prediction = batch["x"] @ p["weight"].T + p["shift"]
    return {"prediction": prediction}, squared(prediction, batch["y"])


@cache
def scalar() -> Case:
    generator = np.random.default_rng(5)
    params = {"weight": normal(generator, 1, 8), "shift": normal(generator, 1)}
    batches = [{"x": normal(generator, 32, 8), "y": normal(generator, 32, 1)} for _ in range(UPDATES)]
    rest = batches[0]["x"].astype(np.float64) @ params["weight"].T.astype(np.float64) - batches[0]["y"]
    params["shift"] = -np.float32([rest.mean()])
    return Case(with_scalar, params, batches, sgd(1e-2))


# biases that start from zero


@cache
def zeros() -> Case:
    generator = np.random.default_rng(6)
    params = {
        "first.weight": normal(generator, 12, 6),
        "first.bias": np.zeros(12, np.float32),
        "second.weight": normal(generator, 2, 12),
    }
    batches = [{"x": normal(generator, 24, 6), "y": normal(generator, 24, 2)} for _ in range(UPDATES)]

    def forward(ops: ModuleType, p: Any, batch: Any) -> Any:
        hidden = ops.tanh(batch["x"] @ p["first.weight"].T + p["first.bias"])
        prediction = hidden @ p["second.weight"].T
        return {"first": hidden, "second": prediction}, squared(prediction, batch["y"])

    return Case(forward, params, batches, sgd(1e-2))


# PyTorch rounds 1 - rate * decay to binary32


@cache
def decayed() -> Case:
    generator = np.random.default_rng(7)
    params = {"weight": normal(generator, 16, 16), "other": normal(generator, 4, 16)}

    def forward(ops: ModuleType, p: Any, batch: Any) -> Any:
        hidden = ops.tanh(batch["x"] @ p["weight"].T)
        prediction = hidden @ p["other"].T
        return {"hidden": hidden, "prediction": prediction}, squared(prediction, batch["y"])

    batches = [{"x": normal(generator, 64, 16), "y": normal(generator, 64, 4)} for _ in range(UPDATES)]
    return Case(forward, params, batches, adamw(1e-2, 0.3))


def scaled(name: str, factor: Any, since: int = 1) -> Callable[[int, Arrays], Arrays]:
    def change(update: int, arrays: Arrays) -> Arrays:
        wrong = (arrays[name] * np.asarray(factor, np.float32)).astype(np.float32)
        return {**arrays, name: wrong} if update >= since else arrays

    return change


def added(name: str, value: Any) -> Callable[[int, Arrays], Arrays]:
    return lambda _, arrays: {**arrays, name: (arrays[name] + np.float32(value)).astype(np.float32)}


QUERIES = np.where(np.arange(24) < 8, 2.0, 1.0)
KEYS = np.where((np.arange(24) >= 8) & (np.arange(24) < 16), 1e-3, 0.0)


@dataclass(frozen=True)
class Trap:
    case: Callable[[], Case]
    bugs: tuple[tuple[dict[str, Any], int, str], ...]
    trap: Callable[[MemoryTraining, MemoryTraining], float]
    least: float


def apart(update: int, key: str) -> Callable[[MemoryTraining, MemoryTraining], float]:
    return lambda a, b: measure(a.arrays[update][key], b.arrays[update][key]).distance


def furthest(key: str, part: slice = slice(None)) -> Callable[[MemoryTraining, MemoryTraining], float]:
    return lambda a, b: max(measure(a.arrays[n][key][part], b.arrays[n][key][part]).distance for n in a.updates())


def worst_element(a: MemoryTraining, b: MemoryTraining) -> float:
    first, second = a.arrays[1]["update/weight"], b.arrays[1]["update/weight"]
    return float(np.max(np.abs(first - second) / np.abs(first).max()))


def turned(a: MemoryTraining, b: MemoryTraining) -> float:
    return float(np.count_nonzero(np.sign(a.arrays[1]["act/relu"]) != np.sign(b.arrays[1]["act/relu"])))


# RAdam's rectification, which optax computes in binary32


def radam(rate: float, beta: float = 0.999) -> Any:
    return (lambda params: torch.optim.RAdam(params, rate, betas=(0.9, beta))), optax.radam(rate, b2=beta)


@cache
def rectified(beta: float) -> Case:
    generator = np.random.default_rng(3)
    params = {"first.weight": normal(generator, 12, 6), "second.weight": normal(generator, 8, 12)}
    batches = [{"x": normal(generator, 24, 6), "y": normal(generator, 24, 8)} for _ in range(RECTIFIED)]
    return Case(without_norm, params, batches, radam(1e-2, beta), running=second_moments(beta))


def second_moments(beta: float) -> Callable[[Any, Any], Arrays]:
    def running(before: Arrays, step: Arrays) -> Arrays:
        found = {}
        for name in ("first.weight", "second.weight"):
            old = before.get(f"opt/nu/{name}", np.zeros_like(step[f"grad/{name}"]))
            found[f"opt/nu/{name}"] = (beta * old + (1 - beta) * step[f"grad/{name}"] ** 2).astype(np.float32)
        return found

    return running


def without_norm(ops: ModuleType, p: Any, batch: Any) -> Any:
    hidden = batch["x"] @ p["first.weight"].T
    prediction = ops.tanh(hidden) @ p["second.weight"].T
    return {"first": hidden, "second": prediction}, squared(prediction, batch["y"])


def decay_slope(a: MemoryTraining, b: MemoryTraining) -> float:
    parameter = a.arrays[1]["param/weight"]
    difference = b.arrays[1]["update/weight"] - a.arrays[1]["update/weight"]
    return float(abs(np.sum(difference * parameter)) / np.sum(parameter**2))


def norm_of_zeros(a: MemoryTraining, b: MemoryTraining) -> float:
    return float(1 - np.max(np.abs(a.arrays[1]["param/first.bias"])))


TRAPS = {
    "null gradient": Trap(
        null_bias,
        (
            ({"change_grads": added("first.bias", 1e-3)}, 1, "grad/first.bias"),
            ({"change_grads": scaled("first.weight", 1.01)}, 1, "grad/first.weight"),
        ),
        furthest("update/first.bias"),
        0.1,
    ),
    "null gradient inside a fused key": Trap(
        fused_null,
        (
            ({"change_updates": scaled("qkv.bias", QUERIES)}, 1, "update/qkv.bias"),
            ({"change_updates": scaled("qkv.bias", QUERIES, since=4)}, 4, "update/qkv.bias"),
            ({"change_grads": added("qkv.bias", KEYS)}, 1, "grad/qkv.bias"),
        ),
        furthest("update/qkv.bias", slice(8, 16)),
        0.1,
    ),
    "one element of Adam": Trap(
        one_element,
        (
            ({"optimizers": adam(1e-3, eps=1e-4)}, 1, "update/weight"),
            ({"change_updates": scaled("weight", 1.05, since=2)}, 2, "update/weight"),
        ),
        worst_element,
        1e-3,
    ),
    "ReLU kink": Trap(
        kink,
        (
            ({"change_grads": scaled("first.bias", 1.5)}, 1, "grad/first.bias"),
            ({"change_grads": scaled("second.weight", 1.0001)}, 1, "grad/second.weight"),
        ),
        turned,
        1,
    ),
    "scalar crossing zero": Trap(
        scalar,
        (
            ({"change_grads": scaled("shift", 2.0)}, 2, "grad/shift"),
            ({"change_grads": added("shift", 1e-3)}, 1, "grad/shift"),
        ),
        apart(1, "grad/shift"),
        3e-3,
    ),
    "zeros": Trap(
        zeros,
        (({"params": {**zeros().params, "first.bias": np.full(12, 1e-3, np.float32)}}, 1, "param/first.bias"),),
        norm_of_zeros,
        1,
    ),
    "BatchNorm": Trap(
        null_bias,
        (({"running": running_statistics(unbiased=False)}, 1, "opt/norm.running_var"),),
        furthest("param/first.bias"),
        1e-6,
    ),
    "1 - rate * decay": Trap(
        decayed,
        (({"optimizers": adamw(1e-2, 0.3003)}, 1, "update/weight"),),
        decay_slope,
        1e-9,
    ),
    "RAdam's rectification": Trap(
        lambda: rectified(0.999),
        (
            ({"change_updates": scaled("first.weight", 1.01, since=6)}, 6, "update/first.weight"),
            ({"optimizers": radam(1.001e-2)}, 1, "update/first.weight"),
            (
                {"change_updates": lambda _, step: {name: 1.3 * value for name, value in step.items()}},
                1,
                "update/first.weight",
            ),
        ),
        apart(6, "update/first.weight"),
        3e-3,
    ),
    "RAdam's rectification of a shorter average": Trap(
        lambda: rectified(0.98),
        (({"optimizers": radam(1e-2, 0.97)}, 6, "update/first.weight"),),
        apart(6, "update/first.weight"),
        2e-5,
    ),
}


@cache
def pair(name: str) -> tuple[MemoryTraining, MemoryTraining]:
    case = TRAPS[name].case()
    return in_torch(case), in_jax(case)


@cache
def noise(name: str) -> Noise:
    return noise_of(TRAPS[name].case())


@pytest.mark.parametrize("twins", [False, True], ids=["without twins", "with twins"])
@pytest.mark.parametrize("name", TRAPS)
def test_a_correct_pair_is_the_same(name: str, twins: bool) -> None:
    first, second = pair(name)
    trap = TRAPS[name]
    assert trap.trap(first, second) >= trap.least  # the trap is there
    comparison = compare(first, second, noise(name) if twins else None)
    assert comparison.outcome == "same", comparison.sentence


@pytest.mark.parametrize("twins", [False, True], ids=["without twins", "with twins"])
@pytest.mark.parametrize(("name", "number"), [(name, n) for name, trap in TRAPS.items() for n in range(len(trap.bugs))])
def test_a_bug_at_the_same_key_is_found(name: str, number: int, twins: bool) -> None:
    changes, update, key = TRAPS[name].bugs[number]
    wrong = in_jax(TRAPS[name].case().with_bug(**changes))
    comparison = compare(pair(name)[0], wrong, noise(name) if twins else None)
    assert comparison.first is not None, comparison.sentence
    assert (comparison.first.update, comparison.first.key) == (update, key), comparison.sentence
    assert comparison.same_through == update - 1


@pytest.mark.parametrize("name", ["Adam", "SGD"])
def test_a_rate_that_goes_apart_when_radam_would_rectify_is_a_difference_in_another_optimizer(name: str) -> None:
    def later(update: int, step: Arrays) -> Arrays:
        return {name: value * np.float32(1 + 4e-4 * max(0, update - 5)) for name, value in step.items()}

    of_optimizer = {"Adam": (adam(1e-2), second_moments(0.999)), "SGD": (sgd(1e-2), None)}
    optimizers, running = of_optimizer[name]
    case = rectified(0.999).with_bug(optimizers=optimizers, running=running)
    found = compare(in_torch(case), in_jax(case.with_bug(change_updates=later)), noise_of(case)).first
    assert found is not None
    assert (found.update, found.stage) == (6, "update")


def test_twins_whose_zeros_were_nudged_leave_bugs_to_be_found() -> None:
    case = zeros()
    assert np.count_nonzero(nudged(case.params, 0, zeros=True)["first.bias"]) == 12
    with_zeros = noise_of(case, zeros=True)
    assert compare(in_torch(case), in_jax(case), with_zeros).outcome == "same"
    wrong = in_jax(case.with_bug(params={**case.params, "first.bias": np.full(12, 1e-3, np.float32)}))
    first = compare(in_torch(case), wrong, with_zeros).first
    assert first is not None
    assert first.key == "param/first.bias"


def test_libraries_round_the_decay_as_the_trap_says() -> None:
    """Show that the trap is PyTorch's own: a parameter without gradient shrinks by the rounded factor."""
    weight = torch.full((1,), 1.0, requires_grad=True)
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], 1e-3, weight_decay=1e-2).step()
    steps, _ = optax.adamw(1e-3, weight_decay=1e-2).update(
        {"w": np.zeros(1, np.float32)},
        optax.adamw(1e-3).init({"w": np.ones(1, np.float32)}),
        {"w": np.ones(1, np.float32)},
    )
    assert 0 < abs((weight.item() - 1) - float(steps["w"][0])) < 6e-8
