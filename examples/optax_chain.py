"""Track inside of an optax optimizer, whose state carries the numbers through a compiled scan over a whole epoch.

The added lines end in `# +`: three more than in `examples/optax_plain.py`, for here no output leaves the compiled function.
Run it from the repository's root: `python -m examples.optax_chain`.
"""

import sys
from functools import partial

import jax
import optax

import noether_jax.optax  # +
from examples.digits import data
from examples.optax_plain import loss_and_outputs
from noether_core.cli import app

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/optax_chain"
EPOCHS = 4
CALLBACKS = [
    {"every_n_epochs": 1, "keys": ["loss", "accuracy", "learning_rate"]},
    {"every_n_updates": 22, "keys": ["grad_norm", "update_norm"], "reduce": ["mean", "max"]},
]


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def train_epoch(optimizer, params, opt_state, images, labels):
    """Return the parameters and the optimizer's state after 44 updates."""

    def train_step(carry, batch):
        params, opt_state = carry
        grads, outputs = jax.grad(loss_and_outputs, has_aux=True)(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params, update_outputs=outputs)  # +
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(train_step, (params, opt_state), (images, labels))[0]


def main() -> None:
    """Train for four epochs of 44 updates, with gradients that are clipped."""
    training, params = data.load()[0], jax.tree.map(jax.numpy.asarray, data.initial_weights())
    schedule = optax.cosine_decay_schedule(3e-3, EPOCHS * 44)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.inject_hyperparams(optax.adam)(schedule))
    example = jax.eval_shape(loss_and_outputs, params, *training)[1]  # +
    with noether_jax.Run(OUT, CALLBACKS, updates_per_epoch=44, effective_batch_size=32) as run:  # +
        optimizer = noether_jax.optax.record_optimizer(optimizer, run, example, steps_per_call=44)  # +
        opt_state = optimizer.init(params)
        batches = list(data.batches(training, EPOCHS))
        for start in range(0, len(batches), 44):
            images, labels = jax.tree.map(lambda *arrays: jax.numpy.stack(arrays), *batches[start : start + 44])
            params, opt_state = train_epoch(optimizer, params, opt_state, images, labels)
            opt_state = run.step(opt_state, steps=44)  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
