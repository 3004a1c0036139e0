"""Start two processes of a program, for the examples that train in several."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed, multiprocessing


def launch(train: Callable[[], None]) -> bool:
    """Call a function in two processes, or in this one if torchrun started it; return whether this is to tell of it."""
    if distributed.is_torchelastic_launched():
        distributed.init_process_group("gloo")
        train()
        is_main = distributed.get_rank() == 0
        distributed.destroy_process_group()
        return is_main
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_start, (train, str(Path(folder, "store"))), nprocs=2)
    return True


def _start(rank: int, train: Callable[[], None], store: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    train()
    distributed.destroy_process_group()
