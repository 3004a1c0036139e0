"""Train a small model in this process of a group, sharded, and keep what a callback has and what the whole values were."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from dtensor_cases import feed
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import noether_torch
from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig, UpdateCounter, UpdateOutputError

CONFIG = {"keys": ["loss"], "patterns": ["norm", "gradient/", "weight/"], "reduce": ["sum", "min", "max", "count"]}
SHARDED = ("fsdp", "hsdp", "fsdp_tp")


def shard(model: nn.Module, way: str) -> nn.Module:
    """Return the model with its parameters spread over the processes; of odd sizes, so that some have more than others."""
    world = dist.get_world_size()
    if way == "ddp":
        return DistributedDataParallel(model)
    if way == "fsdp":
        mesh = dist.init_device_mesh("cpu", (world,))
    elif way == "hsdp":
        mesh = dist.init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "shards"))
    else:
        whole: DeviceMesh = dist.init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
        mesh = whole["data"]
        parallelize_module(model, whole["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    for layer in (model[0], model[2]):  # type: ignore[index]
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def whole(value: Any) -> torch.Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().double()


def train(way: str) -> dict[str, Any]:
    torch.manual_seed(0)
    width = 12 if way == "fsdp_tp" else 7
    model = shard(nn.Sequential(nn.Linear(5, width), nn.ReLU(), nn.Linear(width, 3)), way)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    callback = noether_torch.TrackAdditionalOutputsCallback(
        TrackAdditionalOutputsCallbackConfig(every_n_updates=99, **CONFIG),
        log_writer=LogWriter(update_counter=UpdateCounter()),
    )
    # under tensor parallelism, the processes of a row have the same batch
    torch.manual_seed(dist.get_rank() // (dist.get_world_size() // 2 if way == "fsdp_tp" else 1))
    steps: list[dict[str, torch.Tensor]] = []
    for step in range(3):
        optimizer.zero_grad()
        loss = model(torch.randn(4, 5)).square().mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        named = list(model.named_parameters())
        outputs: dict[str, Any] = {
            "loss": loss,
            **{f"gradient/{name}": parameter.grad for name, parameter in named},
            **{f"weight/{name}": parameter for name, parameter in named},
        }
        outputs["norm"] = norm
        for name, parameter in named if way in SHARDED else ():
            partial = parameter.grad.norm()
            with pytest.raises(UpdateOutputError, match="'norm' is a DTensor"):
                feed([callback], step, {**outputs, "norm": partial})
            outputs[f"norm/{name}"] = partial.redistribute(placements=[Replicate()] * partial.device_mesh.ndim)
        feed([callback], step, outputs)
        steps.append({key: whole(value).clone() for key, value in outputs.items()})
    placements = {str(value.placements) for value in outputs.values() if isinstance(value, DTensor)}
    return {"state": callback.state_dict(), "steps": steps, "placements": sorted(placements)}


def main(rank: int, world: int, folder: Path, *ways: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save({way: train(way) for way in ways}, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
