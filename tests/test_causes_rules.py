"""Check that what differs in data, weights, layers, loss, gradients and clipping is named, each among all the others."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from noether_core.parity.divergence import Comparison, Divergence, MemoryTraining, stage_of
from noether_core.parity.divergence.causes import causes_of
from noether_core.parity.divergence.causes.case import Case
from noether_core.parity.divergence.result import Cause
from tests.cause_trainings import Network, clipped, network

RIGHT = Network()


@cache
def base() -> MemoryTraining:
    return network(RIGHT)


def first_difference(a: MemoryTraining, b: MemoryTraining) -> Divergence:
    """Return the first key that differs, by update and stage."""
    for update in a.updates():
        case = Case(a, b, None, Divergence(update, "data", "data/x", 1.0, 1e-7))
        for key in a.keys(update):
            if not case.agrees(key):
                return Divergence(update, stage_of(key), key, 1.0, 1e-7)
    raise AssertionError("the trainings are the same")


def named(changed: MemoryTraining, a: MemoryTraining | None = None) -> tuple[Cause, ...]:
    one = a or base()
    return causes_of(one, changed, None, Comparison("differs", "", ("a", "b"), first_difference(one, changed)))


def only(wanted: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    return lambda name, weight: change(weight) if name == wanted else weight


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float()


def dropped(x: torch.Tensor) -> torch.Tensor:
    kept = torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) > 0.3
    return functional.gelu(x) * kept / 0.7


def by_array(grads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: grad * min(1.0, 0.1 / float(grad.norm())) for name, grad in grads.items()}


def plus(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return functional.conv2d(x, w, b, padding=1) + b[:, None, None]


def root_mean_square(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x**2).mean(-1, keepdim=True) + 1e-5) * w + b


def outside(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True, correction=0) + 1e-3) * w + b


def running(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return functional.batch_norm(x, torch.zeros(4), torch.ones(4), w, b)


def one_stopped(grads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: grad * (name != "conv.weight") for name, grad in grads.items()}


CASES: dict[str, tuple[str, Network]] = {
    "rows turned": ("batch-order", replace(RIGHT, data=lambda x: x.flip(0))),
    "inputs scaled": ("batch-preprocessing", replace(RIGHT, data=lambda x: (x - 0.1) / 0.3)),
    "inputs scaled by channel": (
        "batch-preprocessing",
        replace(RIGHT, data=lambda x: x * torch.tensor([1.0, 2.0, 0.5])[:, None, None]),
    ),
    "images flipped": ("batch-preprocessing", replace(RIGHT, data=lambda x: x.flip(3))),
    "inputs a column later": (
        "batch-preprocessing",
        replace(RIGHT, data=lambda x: functional.pad(x[..., :-1], (1, 0))),
    ),
    "inputs in bfloat16": ("batch-dtype", replace(RIGHT, data=rounded)),
    "other inputs": ("batch-content", replace(RIGHT, data=lambda x: torch.sin(31 * x) + 3 * x.roll(1, 1).exp().cos())),
    "a padded batch": ("batch-partial", replace(RIGHT, data=lambda x: torch.cat([x[:7], torch.zeros_like(x[:3])]))),
    "a kernel transposed": ("weight-layout", replace(RIGHT, weights=only("mix.weight", lambda w: w.T))),
    "a kernel flipped": ("weight-layout", replace(RIGHT, weights=only("conv.weight", lambda w: w.flip(2, 3)))),
    "a norm not loaded": ("weight-not-loaded", replace(RIGHT, weights=only("ln.weight", torch.ones_like))),
    "weights scaled": ("initial-weights", replace(RIGHT, weights=lambda _, w: 1.5 * w)),
    "padded at one side": (
        "padding",
        replace(RIGHT, conv=lambda x, w, b: functional.conv2d(functional.pad(x, (0, 2, 0, 2)), w, b)),
    ),
    "padded by reflection": (
        "padding",
        replace(RIGHT, conv=lambda x, w, b: functional.conv2d(functional.pad(x, (1, 1, 1, 1), "reflect"), w, b)),
    ),
    "a bias left out": ("bias-missing", replace(RIGHT, conv=lambda x, w, b: functional.conv2d(x, w, 0 * b, padding=1))),
    "a bias added twice": ("bias-missing", replace(RIGHT, conv=plus)),
    "running statistics": ("norm-mode", replace(RIGHT, batch_norm=running)),
    "a leaky ReLU": ("activation-function", replace(RIGHT, activation=lambda x: functional.leaky_relu(x, 0.1))),
    "GELU by tanh": ("activation-function", replace(RIGHT, gelu=lambda x: functional.gelu(x, approximate="tanh"))),
    "SiLU for GELU": ("activation-function", replace(RIGHT, gelu=functional.silu)),
    "mean for maximum": ("pooling", replace(RIGHT, pool=lambda x: functional.avg_pool2d(x, 2))),
    "channels last": ("flatten-order", replace(RIGHT, flatten=lambda x: x.permute(0, 2, 3, 1).flatten(1))),
    "a product in bfloat16": (
        "low-precision",
        replace(RIGHT, linear=lambda x, w, b: functional.linear(rounded(x), rounded(w), b)),
    ),
    "a norm's epsilon": (
        "norm-epsilon",
        replace(RIGHT, layer_norm=lambda x, w, b: functional.layer_norm(x, (12,), w, b, 1e-3)),
    ),
    "a norm's epsilon outside": ("norm-epsilon", replace(RIGHT, layer_norm=outside)),
    "a norm without a mean": ("norm-axes", replace(RIGHT, layer_norm=root_mean_square)),
    "dropout": ("dropout", replace(RIGHT, gelu=dropped)),
    "no residual": ("layer-order", replace(RIGHT, residual=lambda _, y: y)),
    "a sum for a mean": (
        "loss-reduction",
        replace(RIGHT, loss=lambda x, y: functional.cross_entropy(x, y, reduction="sum")),
    ),
    "a loss times three": ("loss-factor", replace(RIGHT, loss=lambda x, y: 2.7 * functional.cross_entropy(x, y))),
    "smoothed labels": (
        "label-smoothing",
        replace(RIGHT, loss=lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1)),
    ),
    "another loss": ("loss-function", replace(RIGHT, loss=lambda x, y: functional.multi_margin_loss(x, y))),
    "a label ignored": ("loss-mask", replace(RIGHT, loss=lambda x, y: functional.cross_entropy(x, y, ignore_index=0))),
    "summed over four steps": (
        "accumulation",
        replace(RIGHT, grads=lambda grads: {name: 4 * grad for name, grad in grads.items()}),
    ),
    "a gradient factor": (
        "gradient-factor",
        replace(RIGHT, grads=lambda grads: {name: 1.3 * grad for name, grad in grads.items()}),
    ),
    "a gradient stopped": ("gradient-stopped", replace(RIGHT, grads=one_stopped)),
    "another threshold": ("clip-threshold", replace(RIGHT, clip=lambda grads: clipped(grads, 0.4))),
    "an epsilon in the clip": ("clip-epsilon", replace(RIGHT, clip=lambda grads: clipped(grads, 0.5, 1e-5))),
    "clipped by array": ("clip-by-array", replace(RIGHT, clip=by_array)),
    "clipped by value": (
        "clip-by-value",
        replace(RIGHT, clip=lambda grads: {name: grad.clamp(-0.05, 0.05) for name, grad in grads.items()}),
    ),
    "not clipped": ("clip-missing", replace(RIGHT, clip=lambda grads: grads)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_a_network_does_otherwise_is_named_first(name: str) -> None:
    cause, options = CASES[name]
    found = named(network(options))
    assert found[0].id == cause, "\n".join(f"{each.id} {each.score:.2f} {each.sentence}" for each in found)
    assert all(0 < each.score <= 1 for each in found)


def test_gradients_that_nobody_set_to_zero_are_named() -> None:
    held: dict[str, torch.Tensor] = {}

    def add(grads: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        total = {name: grad + held.get(name, 0.0) for name, grad in grads.items()}
        held.update(total)
        return total

    found = named(network(replace(RIGHT, grads=add)))
    assert found[0].id == "accumulation"
    assert "zero" in found[0].sentence


def test_a_training_has_no_causes_without_a_difference() -> None:
    assert causes_of(base(), network(RIGHT), None, Comparison("same", "", ("a", "b"))) == ()


def buffered(momentum: float, unbiased: bool) -> MemoryTraining:
    """Average a batch norm's statistics over three updates."""
    generator = np.random.default_rng(0)
    mean, variance, arrays = np.zeros(6), np.ones(6), {}
    for update in (1, 2, 3):
        x = generator.normal(size=(32, 6)) * np.arange(1, 7)
        mean = momentum * mean + (1 - momentum) * x.mean(0)
        variance = momentum * variance + (1 - momentum) * x.var(0, ddof=int(unbiased))
        arrays[update] = {"opt/norm.running_mean": mean, "opt/norm.running_var": variance}
    return MemoryTraining("", "", arrays)


def test_running_statistics_differ_by_their_momentum_or_by_their_variance() -> None:
    assert named(buffered(0.1, True), buffered(0.9, True))[0].id == "buffer-momentum"
    found = named(buffered(0.9, False), buffered(0.9, True))[0]
    assert found.id == "buffer-variance"
    assert "n = 32" in found.sentence


def test_names_are_inert_in_what_is_said() -> None:
    key = "data/x\x1b[31m"
    one, other = (MemoryTraining("", "", {1: {key: np.arange(6.0).reshape(3, 2) * by}}) for by in (1.0, 2.0))
    for cause in named(other, one):
        assert (cause.sentence + "".join(cause.evidence)).isprintable()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(
    "key", ["data/x", "param/conv.weight", "act/ln", "loss/total", "grad/conv.weight", "clip/conv.bias"]
)
def test_values_that_are_not_finite_fail_no_rule(key: str) -> None:
    changed = network(RIGHT)
    changed.arrays[1][key] = changed.arrays[1][key] * np.float32(np.nan)
    assert all(0 < cause.score <= 1 for cause in named(changed))


def test_a_step_without_the_arrays_that_rules_ask_for_still_has_a_cause() -> None:
    one, other = (MemoryTraining("", "", {3: {"update/w": np.arange(1.0, 5.0) * by}}) for by in (1.0, 2.0))
    assert named(other, one)[0].id == "learning-rate"


def test_the_lines_of_the_page_run_and_print_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "causes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```py\n(.*?)```", page, re.DOTALL)
    exec(compile(block, "docs/causes.md", "exec"), {})
    assert capsys.readouterr().out.strip() == re.findall(r"print\(.*?  # (.*)", block)[0]
