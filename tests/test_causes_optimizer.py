"""Check that what differs between two optimizers is named, and its numbers are right, from what the optimizers did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from noether_core.parity.divergence import Comparison, Divergence
from noether_core.parity.divergence.causes import causes_of
from tests.cause_trainings import in_jax, in_torch, steady

Make = Callable[[Any], torch.optim.Optimizer]


def adamw(**options: Any) -> Make:
    chosen: Any = {"lr": 1e-3, "weight_decay": 0.1, **options}
    return lambda parameters: torch.optim.AdamW(parameters.values(), **chosen)


def sgd(**options: Any) -> Make:
    chosen: Any = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 1e-2, **options}
    return lambda parameters: torch.optim.SGD(parameters.values(), **chosen)


def adamax(**options: Any) -> Make:
    return lambda parameters: torch.optim.Adamax(parameters.values(), **options)


def adadelta(**options: Any) -> Make:
    return lambda parameters: torch.optim.Adadelta(parameters.values(), **options)


def adamw_of_matrices(decay: float) -> Make:
    def make(parameters: Any) -> torch.optim.Optimizer:
        groups = [
            {"params": [each for each in parameters.values() if (each.ndim > 1) == is_matrix], "weight_decay": strength}
            for is_matrix, strength in ((True, decay), (False, 0.0))
        ]
        return torch.optim.AdamW(groups, lr=1e-3)

    return make


def radam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.RAdam(parameters.values(), lr=1e-3, betas=(0.9, 0.99))


def nadam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.NAdam(parameters.values(), lr=1e-3, betas=(0.9, 0.99))


def rmsprop(**options: Any) -> Make:
    chosen: Any = {"lr": 1e-3, "alpha": 0.9, **options}
    return lambda parameters: torch.optim.RMSprop(parameters.values(), **chosen)


def adam_jax(rate: Any = 1e-3, decay: float = 0.1, **options: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, weight_decay=decay, **options)


def sgd_jax(rate: Any = 1e-2, momentum: float | None = 0.9, decay: float = 1e-2, **options: Any) -> Any:
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate, momentum=momentum, **options))


def rmsprop_jax(**options: Any) -> optax.GradientTransformation:
    chosen: Any = {"learning_rate": 1e-3, "decay": 0.9, "eps": 1e-8, "eps_in_sqrt": False, **options}
    return optax.rmsprop(**chosen)


def matrices(parameters: Any) -> Any:
    return {name: value.ndim > 1 for name, value in parameters.items()}


def biases(parameters: Any) -> Any:
    return {name: value.ndim == 1 for name, value in parameters.items()}


def uncorrected(rate: float, decay: float) -> optax.GradientTransformation:
    """Return AdamW whose moments are not corrected for their start."""

    def init(parameters: Any) -> Any:
        zeros = {name: jnp.zeros_like(value) for name, value in parameters.items()}
        return zeros, zeros

    def update(gradients: Any, state: Any, parameters: Any = None) -> Any:
        mean = {name: 0.9 * state[0][name] + 0.1 * gradient for name, gradient in gradients.items()}
        square = {name: 0.999 * state[1][name] + 0.001 * gradient**2 for name, gradient in gradients.items()}
        return {name: mean[name] / (jnp.sqrt(square[name]) + 1e-8) for name in mean}, (mean, square)

    scaled = optax.GradientTransformation(init, update)
    return optax.chain(scaled, optax.add_decayed_weights(decay), optax.scale(-rate))


def warm(update: int) -> float:
    return min(1.0, (update + 1) / 8)


CASES: dict[str, tuple[str, Make, Any, Callable[[int], float], int]] = {
    name: (cause, make, transformation, rate, reset)
    for name, cause, make, transformation, rate, reset in [
        ("rate", "learning-rate", adamw(), adam_jax(2e-3), steady, 0),
        ("rate, by 2e-5", "learning-rate", sgd(), sgd_jax(1.00002e-2), steady, 0),
        ("epsilon", "epsilon-value", adamw(), adam_jax(eps=1e-6), steady, 0),
        ("epsilon inside", "epsilon-place", adamw(), adam_jax(eps=0.0, eps_root=1e-8), steady, 0),
        ("epsilon inside RMSprop", "epsilon-place", rmsprop(), rmsprop_jax(eps_in_sqrt=True), steady, 0),
        ("beta 2", "beta", adamw(), adam_jax(b2=0.99), steady, 0),
        ("beta 1", "beta", adamw(), adam_jax(b1=0.8), steady, 0),
        ("alpha", "beta", rmsprop(), rmsprop_jax(decay=0.901), steady, 0),
        ("decay", "decay-value", adamw(), adam_jax(decay=0.1002), steady, 0),
        ("no decay", "decay-value", sgd(), sgd_jax(decay=0.0), steady, 0),
        (
            "decay not scaled",
            "decay-value",
            adamw(),
            optax.chain(optax.adam(1e-3), optax.add_decayed_weights(-0.1)),
            warm,
            0,
        ),
        ("decay of matrices", "decay-mask", adamw(), adam_jax(mask=matrices), steady, 0),
        ("coupled", "decay-coupled", adamw(), optax.chain(optax.add_decayed_weights(0.1), optax.adam(1e-3)), steady, 0),
        (
            "coupled, of matrices, and more than gradients",
            "decay-coupled",
            adamw_of_matrices(3.0),
            optax.chain(optax.add_decayed_weights(3.0, mask=matrices), optax.adam(1e-3)),
            steady,
            0,
        ),
        ("RAdam", "optimizer-other", radam, optax.adam(1e-3, b2=0.99), steady, 0),
        ("NAdam without its schedule", "optimizer-other", nadam, optax.nadam(1e-3, b2=0.99), steady, 0),
        (
            "decoupled",
            "decay-coupled",
            sgd(),
            optax.chain(optax.trace(0.9), optax.add_decayed_weights(1e-2), optax.scale(-1e-2)),
            steady,
            0,
        ),
        (
            "averaged momentum",
            "momentum-convention",
            sgd(),
            optax.chain(optax.add_decayed_weights(1e-2), optax.ema(0.9, debias=False), optax.scale(-1e-2)),
            steady,
            0,
        ),
        (
            "rate in the buffer",
            "momentum-convention",
            sgd(),
            optax.chain(
                optax.add_decayed_weights(1e-2),
                optax.scale_by_learning_rate(lambda count: 1e-2 * jnp.minimum(1.0, (count + 1) / 8)),
                optax.trace(0.9),
            ),
            warm,
            0,
        ),
        ("dampened", "momentum-convention", sgd(dampening=0.9), sgd_jax(), steady, 0),
        ("dampened a little", "momentum-convention", sgd(dampening=0.1), sgd_jax(), steady, 0),
        (
            "clipped in a chain",
            "clip-missing",
            sgd(),
            optax.chain(optax.clip_by_global_norm(0.1), sgd_jax()),
            steady,
            0,
        ),
        (
            "clipped in Adam's chain",
            "clip-missing",
            adamw(),
            optax.chain(optax.clip_by_global_norm(0.1), adam_jax()),
            steady,
            0,
        ),
        ("Adamax's beta", "beta", adamax(), optax.adamax(2e-3, b2=0.99), steady, 0),
        ("momentum", "momentum-value", sgd(), sgd_jax(momentum=0.95), steady, 0),
        ("Nesterov", "nesterov", sgd(), sgd_jax(nesterov=True), steady, 0),
        ("not corrected", "bias-correction", adamw(), uncorrected(1e-3, 0.1), steady, 0),
        (
            "an update late",
            "schedule-offset",
            adamw(),
            adam_jax(lambda count: 1e-3 * jnp.minimum(1.0, count / 8)),
            warm,
            0,
        ),
        (
            "other warm-up",
            "schedule-shape",
            sgd(),
            sgd_jax(lambda count: 1e-2 * jnp.minimum(1.0, (count + 1) / 6)),
            warm,
            0,
        ),
        (
            "biases slower",
            "learning-rate-groups",
            adamw(),
            optax.chain(adam_jax(), optax.masked(optax.scale(0.5), biases)),
            steady,
            0,
        ),
        (
            "frozen",
            "frozen-parameter",
            adamw(),
            optax.chain(adam_jax(), optax.masked(optax.scale(0.0), biases)),
            steady,
            0,
        ),
        ("reset", "state-reset", adamw(), adam_jax(), steady, 5),
        ("sign", "update-sign", sgd(), sgd_jax(-1e-2), steady, 0),
        ("centred", "second-moment", rmsprop(), rmsprop_jax(centered=True), steady, 0),
        ("Nesterov RMSprop", "nesterov", rmsprop(momentum=0.9), rmsprop_jax(momentum=0.9, nesterov=True), steady, 0),
        ("from one", "second-moment", rmsprop(), rmsprop_jax(initial_scale=1.0), steady, 0),
        ("rho of Adadelta", "beta", adadelta(), optax.adadelta(1.0, rho=0.95, eps=1e-6), steady, 0),
        ("epsilon of Adadelta", "epsilon-value", adadelta(), optax.adadelta(1.0, rho=0.9, eps=1e-5), steady, 0),
        ("rate of Adadelta", "learning-rate", adadelta(), optax.adadelta(0.5, rho=0.9, eps=1e-6), steady, 0),
        ("RMSprop for Adadelta", "optimizer-other", adadelta(), rmsprop_jax(), steady, 0),
        ("Lion", "optimizer-other", adamw(), optax.lion(1e-3), steady, 0),
        ("LAMB", "optimizer-other", adamw(), optax.lamb(1e-3, weight_decay=0.1), steady, 0),
    ]
}


def named(make: Make, transformation: Any, rate: Callable[[int], float] = steady, reset: int = 0) -> Any:
    first = Divergence(reset or 1, "update", "update/first.bias", 1.0, 1e-7)
    return causes_of(
        in_torch(make, rate), in_jax(transformation, reset), None, Comparison("differs", "", ("a", "b"), first)
    )


@pytest.mark.parametrize("name", CASES)
def test_what_differs_between_optimizers_is_named_first(name: str) -> None:
    cause, *rest = CASES[name]
    found = named(*rest)
    assert found[0].id == cause, "\n".join(f"{each.id} {each.score:.2f} {each.sentence}" for each in found)
    assert all(0 < each.score <= 1 for each in found)


@pytest.mark.parametrize(
    ("make", "transformation"),
    [(adamw(), adam_jax()), (sgd(), sgd_jax()), (rmsprop(), rmsprop_jax())],
    ids=["Adam", "SGD", "RMSprop"],
)
def test_optimizers_that_are_the_same_have_no_clear_cause(make: Make, transformation: Any) -> None:
    assert [each.id for each in named(make, transformation) if each.score > 0.5] == []


def test_the_sentence_has_the_numbers() -> None:
    assert "0.01 in one and 0.0100002 in the other" in named(sgd(), sgd_jax(1.00002e-2))[0].sentence
    assert "0.01 in one and 0.02" in named(sgd(), sgd_jax(decay=0.02))[0].sentence


def test_a_mask_says_which_parameters() -> None:
    found = named(adamw(), adam_jax(mask=matrices))[0]
    assert "first.bias" in found.sentence or "last.bias" in found.sentence
    assert np.all(["weight" not in line.partition(":")[0] for line in found.evidence[:2]])


def test_what_differs_for_vectors_is_named_where_matrices_have_an_optimizer_that_is_not_known() -> None:
    one, other = (in_jax(optax.contrib.muon(1e-2, adam_b1=beta), 0) for beta in (0.9, 0.8))
    first = Divergence(2, "update", "update/first.bias", 1.0, 1e-7)
    found = causes_of(one, other, None, Comparison("differs", "", ("a", "b"), first))
    assert found[0].id == "beta", found
    assert "0.9 in one and 0.8 in the other" in found[0].sentence


@pytest.mark.parametrize(
    ("wanted", "rates"), [("learning-rate", [2e-3] * 12), ("schedule-shape", [2e-3, *[1e-3] * 11])]
)
def test_a_rate_is_told_from_a_schedule_where_no_optimizer_is_known(wanted: str, rates: list[float]) -> None:
    def adafactor(rates: Any) -> optax.GradientTransformation:
        return optax.adafactor(lambda count: jnp.array(rates)[count], min_dim_size_to_factor=2)

    one, other = in_jax(adafactor([1e-3] * 12), 0), in_jax(adafactor(rates), 0)
    first = Divergence(1, "update", "update/first.bias", 1.0, 1e-7)
    found = causes_of(one, other, None, Comparison("differs", "", ("a", "b"), first))
    assert found[0].id == wanted, found
