"""Compute what layers of neural networks compute, in JAX's layouts; the defaults are PyTorch's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def linear(params: dict[str, Any], name: str, x: jax.Array) -> jax.Array:
    """Return `x @ kernel + bias`."""
    return x @ params[f"{name}.weight"] + params[f"{name}.bias"]


def conv(
    params: dict[str, Any], name: str, x: jax.Array, stride: int = 1, padding: Any = ((1, 1), (1, 1))
) -> jax.Array:
    """Return a convolution of NHWC images with an HWIO kernel."""
    kernel = params[f"{name}.weight"]
    layouts = ("NHWC", "HWIO", "NHWC")
    return (
        lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=layouts)
        + params[f"{name}.bias"]
    )


def normalized(x: jax.Array, mean: jax.Array, var: jax.Array, epsilon: float) -> jax.Array:
    """Return x less its mean, over its deviation, with epsilon inside the root."""
    return (x - mean) / jnp.sqrt(var + epsilon)


def layer_norm(
    params: dict[str, Any], name: str, x: jax.Array, epsilon: float = 1e-5, axis: int = -1, normalize: Any = normalized
) -> jax.Array:
    """Return what is normalized over the last axis, scaled and shifted."""
    normal = normalize(x, x.mean(axis, keepdims=True), x.var(axis, keepdims=True), epsilon)
    return normal * params[f"{name}.weight"] + params[f"{name}.bias"]


def fast_variance(x: jax.Array, axis: Any, keepdims: bool = False) -> jax.Array:
    """Return the variance as the mean square less the squared mean, as Flax's norms have it by default."""
    return jnp.square(x).mean(axis, keepdims=keepdims) - jnp.square(x.mean(axis, keepdims=keepdims))


def layer_norm_as_in_flax(params: dict[str, Any], name: str, x: jax.Array) -> jax.Array:
    """Return the same as `layer_norm`, in the order in which Flax computes it."""
    variance = jnp.maximum(fast_variance(x, -1, keepdims=True), 0)
    scale = jax.lax.rsqrt(variance + 1e-5) * params[f"{name}.weight"]
    return (x - x.mean(-1, keepdims=True)) * scale + params[f"{name}.bias"]


def max_pool(x: jax.Array) -> jax.Array:
    """Return the largest of each 2x2 pixels of NHWC images."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def average_pool(x: jax.Array) -> jax.Array:
    """Return the mean of each 2x2 pixels of NHWC images."""
    return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID") / 4


def dropout(x: jax.Array, update: Any, rate: float = 0.1) -> jax.Array:
    """Return x with some of its elements zero, by a key that the update gives."""
    kept = jax.random.bernoulli(jax.random.fold_in(jax.random.key(0), update), 1 - rate, x.shape)
    return jnp.where(kept, x / (1 - rate), 0)


def negative_log_likelihood(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Return each row's cross-entropy with labels that are smoothed over all classes."""
    log_probabilities = jax.nn.log_softmax(logits)
    classes = logits.shape[-1]
    targets = jax.nn.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
    return -(targets * log_probabilities).sum(-1)


def as_bfloat16(x: jax.Array) -> jax.Array:
    """Return what is left of x in bfloat16."""
    return x.astype(jnp.bfloat16).astype(x.dtype)


def as_tf32(x: jax.Array) -> jax.Array:
    """Return what is left of x in TF32: ten bits of mantissa, rounded to nearest; the gradient passes."""
    bits = lax.bitcast_convert_type(lax.stop_gradient(x), jnp.uint32)
    rounded = lax.bitcast_convert_type((bits + jnp.uint32(0x1000)) & jnp.uint32(0xFFFFE000), x.dtype)
    return x + lax.stop_gradient(rounded - x)


def tf32_linear(params: dict[str, Any], name: str, x: jax.Array) -> jax.Array:
    """Return the same as `linear`, of inputs and a kernel in TF32."""
    return as_tf32(x) @ as_tf32(params[f"{name}.weight"]) + params[f"{name}.bias"]
