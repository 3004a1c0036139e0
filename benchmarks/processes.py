"""Measure an interval's end in several processes, beside what else brings their numbers together.

`python -m benchmarks.processes` starts 2, 4 and 8 processes of `torch.distributed` (gloo) and prints, for each number of keys,
the median of what an interval's end takes on the main process: all in one run, in turns. `--quick` makes fewer of them.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

KEYS = (1, 100, 1_000)
COUNTS = (2, 4, 8)
OURS = "noether_torch, a step that pools and logs"
ONE_BY_ONE = "one all_reduce a key"
TORCHMETRICS = "torchmetrics.MeanMetric, sync and compute"
LIGHTNING = "Lightning, log(sync_dist=True)"

Contender = Callable[[], object]


def measure(count: int, turns: int) -> dict[str, dict[int, float]]:
    """Return for each contender and number of keys the median seconds of an interval's end in so many processes."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as directory:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        free.close()
        workers = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.processes", "worker", directory, str(turns)],
                cwd=Path(__file__).parents[1],
                env={**os.environ, **address, "RANK": str(rank), "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"},
                stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
                text=True,
            )
            for rank in range(count)
        ]
        try:
            told, _ = workers[0].communicate()
            if any(worker.wait() for worker in workers):
                raise RuntimeError(f"of {count} processes, some ended with {[each.returncode for each in workers]}")
        finally:
            for worker in workers:
                worker.kill()
    found: Mapping[str, Mapping[str, float]] = json.loads(told.splitlines()[-1])
    return {name: {int(keys): seconds for keys, seconds in of_keys.items()} for name, of_keys in found.items()}


def _work(directory: Path, turns: int) -> None:
    import torch
    import torch.distributed

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    found: dict[str, dict[int, float]] = {}
    for keys in KEYS:
        with ExitStack() as stack:
            contenders = _contenders(stack, directory / str(keys), keys)
            own = max(3, turns // 5) if keys == KEYS[-1] else turns
            times: dict[str, list[float]] = {name: [] for name in contenders}
            for turn in range(own + 1):
                for name, contender in contenders.items():
                    torch.distributed.barrier()
                    begin = time.perf_counter()
                    contender()
                    if turn:  # the first one warms up
                        times[name].append(time.perf_counter() - begin)
            for name, seconds in times.items():
                found.setdefault(name, {})[keys] = statistics.median(seconds)
    if torch.distributed.get_rank() == 0:
        print(json.dumps(found))
    torch.distributed.destroy_process_group()


def _contenders(stack: ExitStack, path: Path, keys: int) -> dict[str, Contender]:
    """Return what is measured, each with the values of one step."""
    import torch
    import torch.distributed
    from torchmetrics import MeanMetric

    from noether_torch import Run

    names = [f"layer_{at}" for at in range(keys)]
    outputs = {name: torch.tensor(float(at)) for at, name in enumerate(names)}
    run = stack.enter_context(Run(path, [{"every_n_updates": 1, "patterns": ["layer"]}]))
    metrics = [MeanMetric() for _ in names]
    for metric, value in zip(metrics, outputs.values(), strict=True):
        metric.update(value)

    def one_by_one() -> None:
        for value in outputs.values():
            torch.distributed.all_reduce(value.clone())

    def with_torchmetrics() -> None:
        for metric in metrics:
            metric.compute()
            metric._computed = None  # what is computed is kept, and would cost nothing again

    return {
        OURS: lambda: run.step(outputs),
        ONE_BY_ONE: one_by_one,
        TORCHMETRICS: with_torchmetrics,
        LIGHTNING: _lightning(outputs),
    }


def _lightning(outputs: Mapping[str, Any]) -> Contender:
    """Return what Lightning's logging does with these values at the end of a step with `sync_dist=True`, by its own classes."""
    from lightning.fabric.utilities.distributed import _sync_ddp_if_available
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection

    def log() -> None:
        results = _ResultCollection(training=True)
        for name, value in outputs.items():
            results.log(
                "training_step",
                name,
                value.clone(),
                on_step=True,
                on_epoch=False,
                sync_dist=True,
                sync_dist_fn=_sync_ddp_if_available,
                batch_size=1,
            )
        results.metrics(on_step=True)

    return log


def table(found: Mapping[int, Mapping[str, Mapping[int, float]]]) -> str:
    """Return a table in Markdown: milliseconds, and in brackets how many times ours takes."""
    head = ["processes", "", *(f"{keys:,} {'key' if keys == 1 else 'keys'}" for keys in KEYS)]
    lines = [head, ["---"] * len(head)]
    for count, contenders in found.items():
        for name, of_keys in contenders.items():
            cells = [f"{1e3 * of_keys[keys]:.1f} ms ({of_keys[keys] / contenders[OURS][keys]:.1f} ×)" for keys in KEYS]
            lines.append([str(count), name, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _main(arguments: list[str]) -> None:
    if arguments[:1] == ["worker"]:
        warnings.simplefilter("ignore")
        _work(Path(arguments[1]), int(arguments[2]))
        return
    turns = 5 if "--quick" in arguments else 20
    print(table({count: measure(count, turns) for count in COUNTS}))


if __name__ == "__main__":
    _main(sys.argv[1:])
