"""Track a compiled step, under bfloat16 autocast, with gradient accumulation, and a layer's activations too.

The added lines end in `# +`. Run it from the repository's root: `python -m examples.torch_compiled`.
"""

import sys

import torch
from torch import Tensor, nn
from torch.nn import functional

from examples.digits import data
from noether_core.cli import app
from noether_torch import Run, capture  # +

OUT = sys.argv[1] if len(sys.argv) > 1 else "runs/torch_compiled"
CALLBACKS = [
    {"every_n_updates": 8, "keys": ["loss", "accuracy"]},
    {"every_n_updates": 8, "patterns": ["_loss", "activations/"], "reduce": ["mean", "std"]},
]


def main() -> None:
    """Train a network that classifies digits and reconstructs them; two batches to an update."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"body": nn.Linear(64, 32), "classify": nn.Linear(32, 10), "rebuild": nn.Linear(32, 64)})
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=False)  # bfloat16 needs no scaling; float16 does

    @torch.compile(backend="aot_eager")  # the default backend compiles for longer, and runs faster
    def forward(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = functional.relu(model["body"](images))
        logits = model["classify"](hidden)
        class_loss = functional.cross_entropy(logits, labels)
        image_loss = functional.mse_loss(model["rebuild"](hidden), images)
        accuracy = (logits.argmax(-1) == labels).float().mean()
        loss = class_loss + 0.1 * image_loss
        return {"loss": loss, "class_loss": class_loss, "image_loss": image_loss, "accuracy": accuracy}

    with Run(OUT, CALLBACKS, accumulation_steps=2) as run, capture.capture_activations(model, ["body"]) as layers:  # +
        for step, (images, labels) in enumerate(data.batches(data.load()[0], epochs=4), start=1):
            with torch.autocast("cpu", torch.bfloat16):
                outputs = forward(torch.from_numpy(images), torch.from_numpy(labels).long())
            scaler.scale(outputs["loss"] / 2).backward()
            if step % 2 == 0:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
            run.step({**outputs, **layers.take()})  # +


if __name__ == "__main__":
    main()
    app(["show", OUT], standalone_mode=False)
