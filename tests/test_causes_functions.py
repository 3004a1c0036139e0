"""Check that functions between two modules, which no activation shows, are named by the next module's output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from noether_core.parity.divergence import Comparison, Divergence, MemoryTraining
from noether_core.parity.divergence.causes import causes_of
from tests.cause_trainings import Network, network

RIGHT = Network()
HIDDEN = ("act/relu", "act/pool", "act/flat", "act/gelu")


def as_hooks_see_it(options: Network) -> MemoryTraining:
    training = network(options)
    kept = {n: {key: each for key, each in keys.items() if key not in HIDDEN} for n, keys in training.arrays.items()}
    return MemoryTraining("", "", kept)


CASES = {
    "GELU by tanh": (
        "act/mix",
        "activation-function",
        replace(RIGHT, gelu=lambda x: functional.gelu(x, approximate="tanh")),
    ),
    "quick GELU": ("act/mix", "activation-function", replace(RIGHT, gelu=lambda x: x * torch.sigmoid(1.702 * x))),
    "SiLU before pooling": ("act/hidden", "activation-function", replace(RIGHT, activation=functional.silu)),
    "mean for maximum": ("act/hidden", "pooling", replace(RIGHT, pool=lambda x: functional.avg_pool2d(x, 2))),
    "channels last": (
        "act/hidden",
        "flatten-order",
        replace(RIGHT, flatten=lambda x: x.permute(0, 2, 3, 1).flatten(1)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_function_that_no_activation_shows_is_named(name: str) -> None:
    key, cause, options = CASES[name]
    first = Divergence(1, "act", key, 1.0, 1e-7)
    found = causes_of(
        as_hooks_see_it(RIGHT), as_hooks_see_it(options), None, Comparison("differs", "", ("a", "b"), first)
    )
    assert found[0].id == cause, [(each.id, each.sentence) for each in found]


def test_a_norms_epsilon_shows_in_its_rows_where_nothing_tells_its_input() -> None:
    options = replace(RIGHT, layer_norm=lambda x, w, b: functional.layer_norm(x, (12,), w, b, 1e-6))
    one, other = (without(network(each), "act/hidden", "act/flat") for each in (RIGHT, options))
    first = Divergence(1, "act", "act/ln", 1.0, 1e-7)
    assert causes_of(one, other, None, Comparison("differs", "", ("a", "b"), first))[0].id == "norm-epsilon"


def test_something_else_is_among_the_first_three_where_all_that_is_known_of_a_layer_was_tried() -> None:
    options = replace(RIGHT, linear=lambda x, w, b: functional.linear(x.cumsum(1), w, b))
    first = Divergence(1, "act", "act/hidden", 1.0, 1e-7)
    found = causes_of(network(RIGHT), network(options), None, Comparison("differs", "", ("a", "b"), first))
    assert "forward-other" in [each.id for each in found[:3]], found


def test_a_factor_of_a_matrixs_input_is_not_taken_for_a_norm() -> None:
    options = replace(RIGHT, linear=lambda x, w, b: functional.linear(0.8 * x, w, b))
    first = Divergence(1, "act", "act/hidden", 1.0, 1e-7)
    found = causes_of(network(RIGHT), network(options), None, Comparison("differs", "", ("a", "b"), first))
    assert "forward-other" in [each.id for each in found[:2]], found
    assert not any(each.id.startswith("norm") for each in found), found


def skipping(order: tuple[int, int], function: Callable[[torch.Tensor], torch.Tensor]) -> MemoryTraining:
    """Run two layers, of which the second reads the first one's output, activated, beside the inputs."""
    generator = torch.Generator().manual_seed(0)
    x, first = torch.randn(6, 5, 8, generator=generator), torch.randn(8, 8, generator=generator)
    last = torch.randn(3, 16, generator=generator)
    hidden = x @ first.T
    parts = (function(hidden), x)
    output = torch.cat([parts[each] for each in order], -1) @ last.T
    kept = {
        "data/x": x,
        "param/first.weight": first,
        "param/last.weight": last,
        "act/first": hidden,
        "act/last": output,
    }
    return MemoryTraining("", "", {1: {key: value.numpy() for key, value in kept.items()}})


@pytest.mark.parametrize(
    ("cause", "other"),
    [
        ("flatten-order", skipping((1, 0), functional.silu)),
        ("activation-function", skipping((0, 1), functional.relu)),
    ],
)
def test_what_a_layer_reads_beside_one_another_is_named(cause: str, other: MemoryTraining) -> None:
    first = Divergence(1, "act", "act/last", 1.0, 1e-7)
    one = skipping((0, 1), functional.silu)
    assert causes_of(one, other, None, Comparison("differs", "", ("a", "b"), first))[0].id == cause


def without(training: MemoryTraining, *keys: str) -> MemoryTraining:
    kept = {n: {key: each for key, each in arrays.items() if key not in keys} for n, arrays in training.arrays.items()}
    return MemoryTraining("", "", kept)
