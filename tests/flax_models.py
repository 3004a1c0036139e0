"""Two models that are alike, of NNX and of Linen, both with nested modules that sow."""

from __future__ import annotations

import jax
from flax import linen as nn
from flax import nnx


def batch(step: int) -> jax.Array:
    return jax.random.normal(jax.random.key(step), (5, 4))


class Attention(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.query = nnx.Linear(4, 4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(self.query(x))
        self.sow(nnx.Intermediate, "weights", weights)
        return weights * x


class Block(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = Attention(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.attention(x)


class Network(nnx.Module):
    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.blocks = nnx.List([Block(rngs), Block(rngs)])

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = block(x)
        self.sow(nnx.Intermediate, "norms", {"high": x.max(), "parts": (x.min(), x.sum())})
        return x


class LinenAttention(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        weights = jax.nn.softmax(nn.Dense(4, name="query")(x))
        self.sow("intermediates", "weights", weights)
        return weights * x


class LinenNetwork(nn.Module):
    def setup(self) -> None:
        self.blocks = [LinenAttention(), LinenAttention()]

    def __call__(self, x: jax.Array) -> jax.Array:
        for block in self.blocks:
            x = x + block(x)
        self.sow("intermediates", "norms", {"high": x.max(), "parts": (x.min(), x.sum())})
        return x
