"""An interval under way goes from JAX to PyTorch and back in its middle, and every bit of its results stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import jax
import ml_dtypes
import numpy as np
import pytest

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.reduce.eager import PendingReducer
from noether_jax.backend import JaxBackend
from noether_jax.binary32 import BINARY32
from noether_jax.reducer import JaxKernels

ALL = ["mean", "last", "sum", "min", "max", "std", "var", "count"]
STEPS = 12


class Pairs(JaxBackend):
    """Reduce in pairs of binary32."""

    reducer = PendingReducer(JaxKernels(BINARY32))


class PairsCallback(noether_jax.TrackAdditionalOutputsCallback):
    backend = Pairs()


class PairsRun(noether_jax.Run):
    backend = Pairs()
    callback_classes: ClassVar[Any] = {
        **noether_jax.Run.callback_classes,
        noether_jax.TrackAdditionalOutputsCallbackConfig: PairsCallback,
    }


def outputs(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    field = rng.normal(size=(2, 3)).astype(ml_dtypes.bfloat16)
    if seed % 5 == 2:
        field[0, 0] = rng.choice([np.nan, np.inf])
    return {
        "loss": np.asarray(1e3 + rng.normal(), np.float32),
        "field": field,
        "count": np.asarray(rng.integers(-(2**31), 2**31), np.int32),
        "ok": np.asarray(rng.random() < 0.5),
        "weight": np.asarray(rng.integers(0, 3), np.float32),
    }


def by_hooks(run: Any, seeds: range) -> None:
    for seed in seeds:
        run.step({key: run.backend.from_numpy(value) for key, value in outputs(seed).items()})


def by_jit(run: Any, seeds: range) -> None:
    tracked = run.init(outputs(0))
    step = jax.jit(run.track, donate_argnums=0)
    for seed in seeds:
        tracked = run.step(step(tracked, outputs(seed)))


def written(path: Path) -> str:
    read = read_run(path)
    files = [{name: (str(a.dtype), a.shape, a.tobytes()) for name, a in file.load().items()} for file in read.arrays]
    return repr((read.entries, files))


WAYS = {
    "hooks": (noether_jax.Run, by_hooks),
    "hooks, pairs of binary32": (PairsRun, by_hooks),
    "fused": (noether_jax.Run, by_jit),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("weight", [None, "weight"])
@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
def test_a_state_goes_to_pytorch_and_back(way: str, weight: str | None, nonfinite: str, tmp_path: Path) -> None:
    config = {
        "every_n_updates": STEPS // 2,
        "patterns": [""],
        "reduce": ALL if way == "fused" else [*ALL, "stack"],
        "weight": weight,
        "nonfinite": nonfinite,
        "log_output": False,
        "save_output": True,
    }
    jax_run, step = WAYS[way]
    with noether_torch.Run(tmp_path / "whole", [config], accumulation_steps=2) as run:
        by_hooks(run, range(STEPS))
    state = None
    parts = [(jax_run, step, range(3)), (noether_torch.Run, by_hooks, range(3, 8)), (jax_run, step, range(8, STEPS))]
    for number, (run_class, train, seeds) in enumerate(parts):
        run = run_class(tmp_path / "parts", [config], accumulation_steps=2)
        run.start()
        if state is not None:
            run.load_state_dict(state)
        train(run, seeds)
        state = run.state_dict()
        if number == 2:
            run.finish()
        run.log_writer.close()
    assert written(tmp_path / "parts") == written(tmp_path / "whole")
