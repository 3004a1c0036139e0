"""Make DTensors of generated placements, and track them: in a process of a group, or in one that stands for each."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

import noether_torch
from noether_core import LogWriter, TrackAdditionalOutputsCallbackConfig, UpdateCounter

__all__ = ["Partial", "Replicate", "Shard", "_StridedShard"]

MESHES = {
    1: [(1,), (1, 1)],
    2: [(2,), (2, 1), (1, 2)],
    3: [(3,)],
    4: [(4,), (2, 2), (4, 1)],
    6: [(2, 3), (6,)],
    8: [(2, 2, 2)],
}
DTYPES = [
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.bool),
]
SHAPES = [(), (1,), (3,), (8,), (5, 4), (1, 7), (2, 3, 5), (6, 1), (40, 30), (0,), (0, 3), (3000, 3)]
STEPS = 3
CONFIGS = [
    {"keys": ["k1", "k0"], "patterns": ["k"], "reduce": ["mean", "sum", "min", "max", "std", "count"]},
    {"patterns": ["k"], "reduce": ["mean", "sum"], "weight": "one"},
    {"patterns": ["k"], "reduce": ["mean", "std"], "weight": "copied"},
    {"patterns": ["copied"], "reduce": ["last", "stack"], "log_output": False, "save_output": True},
]


class Case:
    """Hold a full tensor, and how it is spread."""

    def __init__(self, rng: np.random.Generator, world: int) -> None:
        self.mesh = MESHES[world][rng.integers(len(MESHES[world]))]
        self.shape = SHAPES[rng.integers(len(SHAPES))]
        self.dtype = DTYPES[rng.integers(len(DTYPES))]
        self.placements = [self._placement(rng) for _ in self.mesh]
        if len(self.mesh) == 2 and len(self.shape) and rng.random() < 0.2:  # as FSDP2 over tensor parallelism makes it
            self.placements = [_StridedShard(0, split_factor=self.mesh[1]), Shard(0)]
            self.shape = (self.shape[0] * world, *self.shape[1:])
        if self.dtype is torch.float64 and math.prod(self.shape) > 500:
            self.dtype = (
                torch.float32
            )  # a large float64 array's std is near the exact one, and another for other splits
        self.form = rng.integers(4)

    def _placement(self, rng: np.random.Generator) -> Any:
        dims = len(self.shape)
        return Shard(int(rng.integers(dims))) if dims and rng.random() < 0.7 else Replicate()

    def full(self, rng: np.random.Generator) -> torch.Tensor:
        """Return small multiples of 1/8, whose sums and squares are exact, and now and then NaN and infinities."""
        whole = not self.dtype.is_floating_point
        high = 100 if self.dtype.itemsize > 1 else 15
        values = torch.tensor(
            rng.integers(0 if self.dtype is torch.uint8 else -high, high, self.shape) / (1 if whole else 8)
        )
        if self.dtype.is_floating_point and self.dtype.itemsize > 1 and rng.random() < 0.2:
            values[torch.tensor(rng.random(self.shape) < 0.1)] = [torch.nan, torch.inf, -torch.inf][rng.integers(3)]
        return values.to(self.dtype)

    def spread(self, full: torch.Tensor, mesh: DeviceMesh, scatter: bool) -> DTensor:
        is_strided = any(isinstance(placement, _StridedShard) for placement in self.placements)
        if scatter and not is_strided and full.dtype.itemsize > 1:
            value = distribute_tensor(full, mesh, self.placements, src_data_rank=None)
        else:
            shape, offset = compute_local_shape_and_global_offset(full.shape, mesh, self.placements)
            part = full[tuple(slice(at, at + size) for at, size in zip(offset, shape, strict=True))].clone()
            value = DTensor.from_local(
                part, mesh, self.placements, run_check=False, shape=full.shape, stride=full.stride()
            )
        if not scatter:  # PyTorch remembers what an operation gave on a mesh, and would think to be the process before
            return value
        if self.form == 1 and full.dtype.is_floating_point:
            return torch.nn.Parameter(value)
        if self.form == 2 and full.dtype in (torch.float32, torch.float64):
            return (value.requires_grad_() * 1).requires_grad_()
        return value


def batches(seed: int, world: int, keys: int) -> tuple[list[Case], list[dict[str, torch.Tensor]]]:
    """Return cases, and of each step the full tensors by key."""
    rng = np.random.default_rng(seed)
    cases = [Case(rng, world) for _ in range(keys)]
    steps = [{f"k{at}": case.full(rng) for at, case in enumerate(cases)} for _ in range(STEPS)]
    return cases, steps


def callbacks() -> list[Any]:
    writer = LogWriter(update_counter=UpdateCounter())
    return [
        noether_torch.TrackAdditionalOutputsCallback(
            TrackAdditionalOutputsCallbackConfig(every_n_updates=99, **config), log_writer=writer, output_path="."
        )
        for config in CONFIGS
    ]


def feed(tracking: list[Any], step: int, outputs: dict[str, Any]) -> None:
    counter = UpdateCounter()
    for _ in range(step):
        counter.next_update()
    for callback in tracking:
        callback.track_after_accumulation_step(update_counter=counter, update_outputs=outputs)


def track(seed: int, world: int, keys: int, scatter: bool) -> list[dict[str, Any]]:
    """Return what this process's callbacks have of some steps."""
    cases, steps = batches(seed, world, keys)
    meshes = {shape: dist.init_device_mesh("cpu", shape) for shape in {case.mesh for case in cases} | {(world,)}}
    line = meshes[(world,)]
    tracking = callbacks()
    for number, full in enumerate(steps):
        spread = {
            key: case.spread(value, meshes[case.mesh], scatter)
            for case, (key, value) in zip(cases, full.items(), strict=True)
        }
        one, two = (
            DTensor.from_local(torch.tensor(2.0 + at), line, [Replicate()], run_check=False) for at in (0, number)
        )
        feed(tracking, number, {**spread, "one": one, "copied": two})
    return [callback.state_dict() for callback in tracking]


def whole(seed: int, world: int, keys: int) -> list[Any]:
    """Return callbacks that had the full tensors, in one process."""
    tracking = callbacks()
    for number, full in enumerate(batches(seed, world, keys)[1]):
        feed(tracking, number, {**full, "one": torch.tensor(2.0), "copied": torch.tensor(2.0 + number)})
    return tracking


def main(rank: int, world: int, folder: Path, seeds: int, keys: int) -> None:
    torch.set_num_threads(1)  # the processes share few cores
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found = {str(seed): track(seed, world, keys, scatter=True) for seed in range(seeds)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]))
