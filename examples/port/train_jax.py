"""Train the autoencoder of `train_torch.py` in JAX: its port; added lines end in `# +`.

Run it from the repository's root, after the other one: `python -m examples.port.train_jax`.
"""

import sys
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from examples.digits import data
from noether_core.names import match
from noether_jax import Run, probe, twin, twin_batch, twin_path  # +
from noether_jax.flax import intermediate_outputs  # +
from noether_jax.names import layers, load, weights

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/port/jax")
WEIGHTS = OUT.with_name("weights.npz")
UPDATES = 12


class GELU(nnx.Module):
    """Bend as `nn.GELU` does."""

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Return the inputs, each times the share of normal numbers below it."""
        return nnx.gelu(inputs, approximate=False)


class Autoencoder(nnx.Module):
    """Rebuild images of 64 pixels from 8 numbers."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.encode = nnx.Linear(64, 32, rngs=rngs)
        self.norm = nnx.LayerNorm(32, epsilon=1e-5, rngs=rngs)
        self.bend = GELU()
        self.code = nnx.Linear(32, 8, rngs=rngs)
        self.rebuild = nnx.Linear(8, 64, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return what images are rebuilt as, of shape (n, 64)."""
        return self.rebuild(self.code(self.bend(self.norm(self.encode(images)))))


def main() -> None:
    """Train for 12 updates of 32 digits each, from the weights that the original saved."""
    model = Autoencoder(nnx.Rngs(0))
    with np.load(WEIGHTS) as saved:
        load(model, dict(saved), match(dict(saved), weights(model), flax_layers=layers(model)).check())
    graph, params = nnx.split(twin(model))  # +
    optimizer = optax.adamw(3e-3, weight_decay=1e-2)

    @jax.jit
    def train_step(params, opt_state, images, due):
        def loss_of(params):
            forward = nnx.capture(nnx.merge(graph, params), nnx.Intermediate, method_outputs=nnx.Intermediate)  # +
            rebuilt, activations = forward(images)  # +
            return jnp.mean((rebuilt - images) ** 2), intermediate_outputs(activations)  # +

        (loss, activations), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        pieces = {"batch": {"images": images}, "params": params, "activations": activations, "losses": loss}  # +
        probes = probe(due, **pieces, grads=grads, updates=updates, opt_state=opt_state)  # +
        return optax.apply_updates(params, updates), opt_state, {"loss": loss, **probes}

    opt_state = optimizer.init(params)
    with Run(twin_path(OUT), [{"kind": "ProbeCallback"}]) as run:  # +
        for batch in islice(data.batches(data.load()[0], epochs=1), UPDATES):
            images = twin_batch(jnp.asarray(batch.images))  # +
            params, opt_state, outputs = train_step(params, opt_state, images, run.probes_due)
            run.step(outputs)  # +


if __name__ == "__main__":
    main()
