"""Train a small PyTorch network with probes, as a script or in this process: `python port_training.py RUN --lr 0.2`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from noether_torch import Run, twin, twin_batch, twin_path


class Network(nn.Module):
    """Two linear layers, the first named or kept as a stranger might."""

    def __init__(self, name: str, is_own: bool) -> None:
        super().__init__()
        if is_own:
            self.mixing = nn.Parameter(torch.empty(4, 8).uniform_(-0.5, 0.5))
            self.first = None
        else:
            self.first = nn.Linear(4, 8, bias=False)
        self.add_module(name, nn.Linear(8, 2))
        self.last = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = x @ self.mixing if self.first is None else self.first(x)
        return self.get_submodule(self.last)(torch.tanh(hidden))


def initial(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return Network("second", is_own=False).state_dict()


def loaded(name: str, is_own: bool, seed: int) -> Network:
    model, weights = Network(name, is_own), initial(seed)
    weights = {key.replace("second", name): value for key, value in weights.items()}
    if is_own:
        weights["mixing"] = weights.pop("first.weight").T
    model.load_state_dict(weights)
    return model


def train(
    path: str | Path,
    *,
    seed: int = 0,
    batches: int = 0,
    updates: int = 4,
    start: int = 0,
    lr: float = 0.1,
    name: str = "second",
    own: bool = False,
    probes: bool = True,
    accumulation: int = 1,
    dropout: float = 0.0,
    nudge: bool = True,
    redirect: bool = True,
) -> Path:
    """Train and return the run directory.

    Args:
        seed: of the weights; `batches` of the batches.
        start: how many updates went before, elsewhere.
        name: of the second layer; own: whether the first one is a bare matrix, transposed.
        nudge, redirect: whether the script asks whether it is a twin, and writes where a twin should.
    """
    model = loaded(name, own, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    generator = np.random.default_rng([batches, 7])
    callbacks: list[Any] = [{"kind": "ProbeCallback", "every_n_updates": 1}] if probes else []
    callbacks.append({"every_n_updates": 1, "keys": ["loss"]})
    given: dict[str, Any] = {"accumulation_steps": accumulation, "start": {"update": start} if start else None}
    with Run(twin_path(path) if redirect else path, callbacks, **given) as run:
        weights = twin(model) if nudge else model
        if probes:
            run.probe(weights, optimizer)
        for _ in range(updates):
            x = torch.from_numpy(generator.normal(size=(8, 4)).astype(np.float32))
            x, y = twin_batch((x, torch.sin(x[:, :2])))
            for part in range(accumulation):
                inputs, targets = (each.chunk(accumulation)[part] for each in (x, y))
                loss = functional.mse_loss(functional.dropout(model(inputs), dropout), targets) / accumulation
                loss.backward()
                if part + 1 == accumulation:
                    optimizer.step()
                run.step({"loss": loss}, batch={"x": inputs, "y": targets}, losses=loss)
            optimizer.zero_grad()
    return Path(path)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--batches", type=int, default=0)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--no-nudge", dest="nudge", action="store_false")
    parser.add_argument("--no-redirect", dest="redirect", action="store_false")
    parser.add_argument("--fail", action="store_true")
    arguments = vars(parser.parse_args())
    if arguments.pop("fail"):
        raise SystemExit("the disk is on fire")
    train(**arguments)


if __name__ == "__main__":
    main()
