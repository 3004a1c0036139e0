"""Feed one training's update outputs through every way in: what each leaves may differ in no byte.

The outputs are those of the digits workload, recorded in the PyTorch training. In each trainer, a model hands them out batch by
batch, as if it had computed them: what is compared is the way from the training step to the files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import noether_jax
import noether_torch
import noether_torch.accelerate
import noether_torch.lightning
import noether_torch.transformers
from examples.digits import data, train_torch
from noether_core import read_run
from noether_core.parity import differing_files, read_recording

EPOCHS = 2
CALLBACKS = train_torch.CALLBACKS
SIZES = {"updates_per_epoch": data.UPDATES_PER_EPOCH, "effective_batch_size": data.EFFECTIVE_BATCH_SIZE}
RUN = {**SIZES, "accumulation_steps": data.ACCUMULATION_STEPS}
BATCHES = data.UPDATES_PER_EPOCH * data.ACCUMULATION_STEPS

Outputs = Mapping[str, np.ndarray[Any, Any]]
Recorded = list[Outputs]

pytestmark = [
    # Lightning advises more workers, a longer log interval; it asks PyTorch for the LeafSpec check under its old name
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorded]:
    """Return the run of a plain loop, and the update outputs of each of its accumulation steps."""
    root = tmp_path_factory.mktemp("trained")
    train_torch.train(root / "run", epochs=EPOCHS, record=root / "outputs.safetensors")
    recorded = [outputs for outputs in read_recording(root / "outputs.safetensors") if outputs]
    assert len(recorded) == EPOCHS * BATCHES
    return root / "run", recorded


# ------------------------------------------------------------------ PyTorch


def tensors(recorded: Recorded) -> Iterator[dict[str, Tensor]]:
    for outputs in recorded:
        yield {key: torch.from_numpy(value.copy()) for key, value in outputs.items()}


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
    track = noether_torch.transformers.TrackOutputs(str(CALLBACKS), path)
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


# ------------------------------------------------------------------ every way


WAYS: dict[str, Callable[[Recorded, Path], None]] = {
    "torch loop": torch_loop,
    "lightning": lightning,
    "transformers": transformers,
    "accelerate": accelerate,
    "jax loop": jax_loop,
    "jax fused": jax_fused,
    "jax scanned": jax_scanned,
}


@pytest.mark.parametrize("way", WAYS)
def test_a_way_in_leaves_what_the_plain_loop_left(way: str, trained: tuple[Path, Recorded], tmp_path: Path) -> None:
    plain, recorded = trained
    WAYS[way](recorded, tmp_path / "run")
    assert differing_files(plain, tmp_path / "run") == ([], 1 + EPOCHS)
    series = read_run(tmp_path / "run").series
    assert len(series) == 13
    assert [point.update for point in series["loss/U10"]] == [10, 20, 30, 40, 44]
