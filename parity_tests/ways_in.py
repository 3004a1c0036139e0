"""Every way in for a user, fed one stream of recorded update outputs.

In each trainer, a model hands the outputs out batch by batch, as if it had computed them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lightning.pytorch as pl
import numpy as np
import optax
import torch
from accelerate import Accelerator
from flax import linen, nnx
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import noether_jax
import noether_jax.flax
import noether_jax.optax
import noether_torch
import noether_torch.accelerate
import noether_torch.lightning
import noether_torch.transformers
from examples.digits import data, train_torch
from parity_tests.devices import to_torch

EPOCHS = 2
CALLBACKS: Any = train_torch.CALLBACKS
SIZES = {"updates_per_epoch": data.UPDATES_PER_EPOCH, "effective_batch_size": data.EFFECTIVE_BATCH_SIZE}
RUN = {**SIZES, "accumulation_steps": data.ACCUMULATION_STEPS}
BATCHES = data.UPDATES_PER_EPOCH * data.ACCUMULATION_STEPS

Outputs = Mapping[str, np.ndarray[Any, Any]]
Recorded = list[Outputs]

# ------------------------------------------------------------------ PyTorch


def tensors(recorded: Recorded) -> Iterator[dict[str, Tensor]]:
    for outputs in recorded:
        yield {key: to_torch(value) for key, value in outputs.items()}


def torch_loop(recorded: Recorded, path: Path) -> None:
    with noether_torch.Run(path, CALLBACKS, **RUN) as run:
        for outputs in tensors(recorded):
            run.step(outputs)


class Replayed(pl.LightningModule):
    """Return the recorded outputs; the loss has a gradient, which is zero."""

    def __init__(self, recorded: Recorded) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.outputs = tensors(recorded)

    def training_step(self, batch: Tensor) -> dict[str, Tensor]:
        outputs = next(self.outputs)
        return {**outputs, "loss": outputs["loss"] + 0 * self.weight}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def lightning(recorded: Recorded, path: Path) -> None:
    options = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    options |= {"max_epochs": EPOCHS, "accumulate_grad_batches": data.ACCUMULATION_STEPS, "accelerator": "cpu"}
    track = noether_torch.lightning.TrackOutputs(CALLBACKS, path)
    loader = DataLoader(torch.zeros(BATCHES * data.BATCH_SIZE), batch_size=data.BATCH_SIZE)
    pl.Trainer(**options, callbacks=[track]).fit(Replayed(recorded), loader)


class ReplayedTrainer(Trainer):
    outputs: Iterator[dict[str, Tensor]]

    def compute_loss(self, model: Any, inputs: Any, **_: Any) -> Tensor:
        noether_torch.transformers.record(self, next(self.outputs))
        return model(**inputs).sum()


def transformers(recorded: Recorded, path: Path) -> None:
    arguments = TrainingArguments(
        str(path.with_name("trainer")),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
        logging_strategy="no",
        per_device_train_batch_size=data.BATCH_SIZE,
        gradient_accumulation_steps=data.ACCUMULATION_STEPS,
        num_train_epochs=EPOCHS,
        dataloader_pin_memory=False,
    )
    samples = [{"input": torch.zeros(1)}] * (BATCHES * data.BATCH_SIZE)
    track = noether_torch.transformers.TrackOutputs(CALLBACKS, path)
    trainer = ReplayedTrainer(nn.Linear(1, 1), arguments, train_dataset=samples, callbacks=[track])
    trainer.outputs = tensors(recorded)
    trainer.train()


def accelerate(recorded: Recorded, path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=data.ACCUMULATION_STEPS)
    model = nn.Linear(1, 1)
    loader = DataLoader(torch.zeros(BATCHES * data.BATCH_SIZE, 1), batch_size=data.BATCH_SIZE)
    model, optimizer, loader = accelerator.prepare(model, torch.optim.SGD(model.parameters()), loader)
    outputs = tensors(recorded)
    with noether_torch.accelerate.Run(path, CALLBACKS, accelerator=accelerator, **SIZES) as run:
        for _ in range(EPOCHS):
            for batch in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(model(batch).sum())
                    optimizer.step()
                    optimizer.zero_grad()
                    run.step(next(outputs))


# ------------------------------------------------------------------ JAX


def jax_loop(recorded: Recorded, path: Path) -> None:
    with noether_jax.Run(path, CALLBACKS, **RUN) as run:
        for outputs in recorded:
            run.step({key: jnp.asarray(value) for key, value in outputs.items()})


def jax_fused(recorded: Recorded, path: Path) -> None:
    with noether_jax.Run(path, CALLBACKS, **RUN) as run:
        tracked = run.init(recorded[0])
        step = jax.jit(run.track, donate_argnums=0)
        for outputs in recorded:
            tracked = run.step(step(tracked, outputs))


def jax_scanned(recorded: Recorded, path: Path) -> None:
    """Scan over 25 steps a call, which may hold several intervals' ends."""
    with noether_jax.Run(path, CALLBACKS, **RUN) as run:
        tracked = run.init(recorded[0], steps_per_call=25)

        @jax.jit
        def call(tracked: noether_jax.Tracked, outputs: Any) -> noether_jax.Tracked:
            return jax.lax.scan(lambda carry, each: (run.track(carry, each), None), tracked, outputs)[0]

        for start in range(0, len(recorded), 25):
            part = recorded[start : start + 25]
            stacked = jax.tree.map(lambda *values: jnp.stack(values), *part)
            tracked = run.step(call(tracked, stacked), steps=len(part))


def optax_chain(recorded: Recorded, path: Path) -> None:
    with noether_jax.Run(path, CALLBACKS, **RUN) as run:
        link = noether_jax.optax.record_outputs(run, recorded[0])
        optimizer = optax.chain(link, optax.MultiSteps(optax.sgd(0.1), 2).gradient_transformation())
        update = jax.jit(lambda state, outputs: optimizer.update(jnp.ones(2), state, update_outputs=outputs)[1])
        state = optimizer.init(jnp.zeros(2))
        for outputs in recorded:
            state = run.step(update(state, outputs))


class Sowing(linen.Module):
    """Sow the outputs, by the path in their name, as a model does with its intermediates."""

    @linen.compact
    def __call__(self, outputs: Outputs) -> None:
        for key, value in outputs.items():
            self.sow("intermediates", key, value)


def flax_linen(recorded: Recorded, path: Path) -> None:
    model = Sowing()

    @jax.jit
    def step(values: list[Any]) -> Any:
        outputs = dict(zip(recorded[0], values, strict=True))
        return model.apply({}, outputs, mutable=["intermediates"])[1]["intermediates"]

    with noether_jax.Run(path, CALLBACKS, **RUN) as run:
        for outputs in recorded:
            sown = noether_jax.flax.intermediate_outputs(step(list(outputs.values())))
            run.step({key: sown[key] for key in outputs})  # a compiled function sorts the keys


def flax_nnx(recorded: Recorded, path: Path) -> None:
    """Sow by NNX, in the way of the example."""

    class Network(nnx.Module):
        def __call__(self, outputs: Outputs) -> None:
            for key, value in outputs.items():
                self.sow(nnx.Intermediate, key, value)

    @nnx.jit
    def step(model: Network, outputs: Outputs) -> Any:
        return nnx.capture(model, nnx.Intermediate)(outputs)[1]

    model = Network()
    with noether_jax.Run(path, CALLBACKS, **RUN) as run:
        for outputs in recorded:
            sown = noether_jax.flax.intermediate_outputs(step(model, outputs))
            run.step({key: sown[key] for key in outputs})


WAYS: dict[str, Callable[[Recorded, Path], None]] = {
    "torch loop": torch_loop,
    "lightning": lightning,
    "transformers": transformers,
    "accelerate": accelerate,
    "jax loop": jax_loop,
    "jax fused": jax_fused,
    "jax scanned": jax_scanned,
    "optax chain": optax_chain,
    "flax linen": flax_linen,
    "flax nnx": flax_nnx,
}
