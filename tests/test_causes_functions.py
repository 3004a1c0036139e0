"""Check that functions between two modules, which no activation shows, are named by the next module's output."""

from __future__ import annotations

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
