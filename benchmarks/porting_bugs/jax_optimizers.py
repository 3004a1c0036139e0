"""Write PyTorch's SGD, Adam, AdamW and RMSprop out in JAX, with what ports get wrong as fields that can be replaced.

Formulas: the pseudocode in the documentation of `torch.optim`. Trees are flat dicts by parameter name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

Tree = dict[str, Any]


@dataclass(frozen=True)
class Optimizer:
    """Hold what all have in common.

    Attributes:
        decay: the strength of weight decay, for the parameters that `decays` says.
        coupled: whether decay goes into the gradient; if not, `shrink` is applied to the parameter before the update.
        rates: what the learning rate of a parameter is multiplied by.
        remember: from the state and the update's number to the state that the update starts with.
        store: what moments are rounded to.
        trained: which parameters are updated.
    """

    moments: ClassVar[tuple[str, ...]]
    decay: float = 0.0
    decays: Callable[[str], bool] = lambda name: True
    coupled: bool = True
    shrink: Callable[[Any, Any, float], Any] = lambda param, rate, decay: param * (1 - rate * decay)
    rates: Callable[[str], float] = lambda name: 1.0
    remember: Callable[[Tree, Any], Tree] = lambda state, update: state
    store: Callable[[Any], Any] = lambda moment: moment
    trained: Callable[[str], bool] = lambda name: True
    start: float = 0.0

    def init(self, params: Mapping[str, Any]) -> Tree:
        """Return the moments before the first update."""
        start = {
            f"{moment}/{name}": np.full_like(value, self.start)
            for moment in self.moments
            for name, value in params.items()
        }
        return {"count": np.zeros((), np.int32), **start}

    def update(self, grads: Tree, params: Tree, state: Tree, rate: Any, update: Any) -> tuple[Tree, Tree]:
        """Return the parameters and the state after an update."""
        state = self.remember(state, update)
        count = state["count"] + 1
        after, moments = {}, {"count": count}
        for name, param in params.items():
            before = {moment: state[f"{moment}/{name}"] for moment in self.moments}
            decay = self.decay if self.decays(name) else 0.0
            scaled = rate * self.rates(name)
            grad = grads[name] + decay * param if self.coupled else grads[name]
            new, step = self.direction(grad, before, scaled, count)
            moments |= {f"{moment}/{name}": self.store(value) for moment, value in new.items()}
            shrunk = param if self.coupled or not decay else self.shrink(param, scaled, decay)
            after[name] = shrunk + step if self.trained(name) else param
        return after, moments

    def direction(self, grad: Any, moments: Tree, rate: Any, count: Any) -> tuple[Tree, Any]:
        """Return a parameter's new moments, and what is added to it."""
        raise NotImplementedError


@dataclass(frozen=True)
class Sgd(Optimizer):
    """Descend with momentum: from the buffer, the gradient and the rate to the new buffer, and from these to the step."""

    moments = ("trace",)
    buffer: Callable[[Any, Any, Any], Any] = lambda trace, grad, rate: 0.9 * trace + grad
    step: Callable[[Any, Any, Any], Any] = lambda trace, grad, rate: -rate * trace

    def direction(self, grad: Any, moments: Tree, rate: Any, count: Any) -> tuple[Tree, Any]:
        """Return the new buffer and the step."""
        trace = self.buffer(moments["trace"], grad, rate)
        return {"trace": trace}, self.step(trace, grad, rate)


def corrected(moment: Any, beta: float, count: Any) -> Any:
    """Return a moment divided by 1 - beta^count; expm1, since in float32 1 - 0.999 is off by 1e-5 of itself."""
    return moment / -jnp.expm1(count * np.log(beta))


def corrected_as_in_optax(moment: Any, beta: float, count: Any) -> Any:
    """Return the same but for roundings: at the first update sqrt(1 - 0.999) is off by 6e-6 of itself."""
    return moment / (1 - beta ** count.astype(jnp.float32))


@dataclass(frozen=True)
class Adam(Optimizer):
    """Follow D. P. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", 2015, algorithm 1."""

    moments = ("mu", "nu")
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    correct: Callable[[Any, float, Any], Any] = corrected
    root: Callable[[Any, float], Any] = lambda nu, epsilon: jnp.sqrt(nu) + epsilon
    first: Callable[[Any, Any, Adam, Any], Any] = lambda mu, grad, adam, count: adam.correct(mu, adam.beta1, count)

    def direction(self, grad: Any, moments: Tree, rate: Any, count: Any) -> tuple[Tree, Any]:
        """Return the new moments and the step."""
        mu = self.beta1 * moments["mu"] + (1 - self.beta1) * grad
        nu = self.beta2 * moments["nu"] + (1 - self.beta2) * grad * grad
        denominator = self.root(self.correct(nu, self.beta2, count), self.epsilon)
        return {"mu": mu, "nu": nu}, -rate * self.first(mu, grad, self, count) / denominator


@dataclass(frozen=True)
class AmsGrad(Adam):
    """Divide by the largest second moment so far, of those corrected for their start, as optax does."""

    moments = ("mu", "nu", "nu_max")

    def direction(self, grad: Any, moments: Tree, rate: Any, count: Any) -> tuple[Tree, Any]:
        """Return the new moments and the step."""
        mu = self.beta1 * moments["mu"] + (1 - self.beta1) * grad
        nu = self.beta2 * moments["nu"] + (1 - self.beta2) * grad * grad
        largest = jnp.maximum(moments["nu_max"], self.correct(nu, self.beta2, count))
        step = -rate * self.first(mu, grad, self, count) / self.root(largest, self.epsilon)
        return {"mu": mu, "nu": nu, "nu_max": largest}, step


@dataclass(frozen=True)
class RmsProp(Optimizer):
    """Follow T. Tieleman, G. Hinton, "Lecture 6.5 - rmsprop", 2012, with momentum as `torch.optim.RMSprop` has it."""

    moments = ("nu", "trace")
    alpha: float = 0.99
    epsilon: float = 1e-8
    correct: Callable[[Any, float, Any], Any] = lambda nu, alpha, count: nu
    root: Callable[[Any, float], Any] = lambda nu, epsilon: jnp.sqrt(nu) + epsilon
    buffer: Callable[[Any, Any, Any], Any] = lambda trace, scaled, rate: 0.9 * trace + scaled
    step: Callable[[Any, Any, Any], Any] = lambda trace, scaled, rate: -rate * trace

    def init(self, params: Mapping[str, Any]) -> Tree:
        """Return the moments before the first update: only the second starts elsewhere."""
        start = super().init(params)
        return {key: value * (key.startswith("nu/")) if key != "count" else value for key, value in start.items()}

    def direction(self, grad: Any, moments: Tree, rate: Any, count: Any) -> tuple[Tree, Any]:
        """Return the new moments and the step."""
        nu, others = self.second_moments(grad, moments)
        scaled = grad / self.root(self.correct(nu - others.get("mean", 0.0) ** 2, self.alpha, count), self.epsilon)
        trace = self.buffer(moments["trace"], scaled, rate)
        return {"nu": nu, "trace": trace, **others}, self.step(trace, scaled, rate)

    def second_moments(self, grad: Any, moments: Tree) -> tuple[Any, Tree]:
        """Return the mean square of gradients, and further moments."""
        return self.alpha * moments["nu"] + (1 - self.alpha) * grad * grad, {}


@dataclass(frozen=True)
class CenteredRmsProp(RmsProp):
    """Take the square of the mean gradient from the second moment."""

    moments = ("nu", "trace", "mean")

    def second_moments(self, grad: Any, moments: Tree) -> tuple[Any, Tree]:
        """Return the mean square of gradients, and their mean."""
        nu, _ = super().second_moments(grad, moments)
        return nu, {"mean": self.alpha * moments["mean"] + (1 - self.alpha) * grad}


def global_norm(grads: Tree) -> jax.Array:
    """Return the norm of all gradients together."""
    return jnp.sqrt(sum(jnp.sum(grad * grad) for grad in grads.values()))
