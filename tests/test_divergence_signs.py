"""Check that where an optimizer takes the sign of a sum that is zero but for rounding, an element may turn, and no other."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import optax
import pytest
import torch
from divergence_trainings import Arrays, Case, Change, in_jax, in_torch, noise_of, normal

from noether_core.parity.divergence import MemoryTraining, Noise, compare

RATE, B1, B2 = 1e-3, 0.9, 0.99
TURNS, ELEMENT = 5, (3, 2)


class Lion(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": RATE})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for param in self.param_groups[0]["params"]:
            momentum = self.state[param].setdefault("momentum", torch.zeros_like(param))
            param -= RATE * torch.sign(B1 * momentum + (1 - B1) * param.grad)
            momentum.mul_(B2).add_(param.grad, alpha=1 - B2)


def forward(ops: ModuleType, p: Any, batch: Any) -> Any:
    hidden = ops.tanh(batch["x"] @ p["first.weight"])
    prediction = hidden @ p["second.weight"]
    return {"first": hidden, "second": prediction}, ((prediction - batch["y"]) ** 2).mean()


@cache
def case() -> Case:
    generator = np.random.default_rng(5)
    params = {"first.weight": normal(generator, 8, 16, scale=0.4), "second.weight": normal(generator, 16, 4, scale=0.4)}
    batches = [{"x": normal(generator, 32, 8), "y": normal(generator, 32, 4)} for _ in range(9)]
    return Case(forward, params, batches, (Lion, optax.lion(RATE, B1, B2, weight_decay=0.0)))


@cache
def noise() -> Noise:
    return noise_of(case())


def to_zero(key: str, apart: float) -> Change:
    """Return what sets one element's gradient, at one update, so that Lion's sum is zero there, but for `apart`."""
    momentum = 0.0

    def change(update: int, grads: Arrays) -> Arrays:
        nonlocal momentum
        changed = grads[key].copy()
        if update == TURNS:
            changed[ELEMENT] = -B1 / (1 - B1) * momentum * (1 + apart)
        momentum = B2 * momentum + (1 - B2) * float(changed[ELEMENT])
        return {**grads, key: changed}

    return change


def with_momenta(training: MemoryTraining) -> MemoryTraining:
    """Return a training with its optimizer's state beside the rest."""
    momenta = {name: np.zeros_like(value) for name, value in case().params.items()}
    for arrays in training.arrays.values():
        for name, value in momenta.items():
            momenta[name] = np.float32(B2) * value + np.float32(1 - B2) * arrays[f"grad/{name}"]
        arrays.update({f"opt/mu/{name}": value for name, value in momenta.items()})
    return training


@pytest.mark.parametrize("key", ["first.weight", "second.weight"])
def test_an_element_whose_sum_is_zero_but_for_rounding_may_turn_and_what_follows_is_no_difference(key: str) -> None:
    a = with_momenta(in_torch(replace(case(), change_grads=to_zero(key, 3e-7))))
    b = with_momenta(in_jax(replace(case(), change_grads=to_zero(key, -3e-7))))
    updates = [each.arrays[TURNS][f"update/{key}"][ELEMENT] for each in (a, b)]
    assert updates[0] * updates[1] < 0
    for known in (noise(), None):
        assert compare(a, b, known).outcome == "same"


def test_an_element_whose_sum_is_not_zero_may_not_turn() -> None:
    def change(update: int, moved: Arrays) -> Arrays:
        if update == TURNS:
            moved["first.weight"][ELEMENT] *= -1
        return moved

    a, b = (
        with_momenta(train(replace(case(), change_updates=each)))
        for train, each in ((in_torch, change), (in_torch, case().change_updates))
    )
    found = compare(a, b, noise()).first
    assert found is not None
    assert (found.update, found.key) == (TURNS, "update/first.weight")


@pytest.mark.parametrize("weight", [0.88, 0.95, 0.0])
def test_another_weight_of_the_momentum_turns_elements_and_is_found(weight: float) -> None:
    a = with_momenta(in_torch(case()))
    b = with_momenta(in_jax(replace(case(), optimizers=(Lion, optax.lion(RATE, weight, B2, weight_decay=0.0)))))
    found = compare(a, b, noise()).first
    assert found is not None
    assert found.stage == "update"
    assert found.update == 2
