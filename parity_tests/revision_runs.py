"""Write what a revision logs and saves, for `compare_revisions`, which runs this under each of two.

Of ours it uses only what the packages list as public, so that it runs under an older revision too.
"""

from __future__ import annotations

import argparse
import contextlib
import warnings
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

import noether_jax
import noether_torch
from examples.demo import replay_settings
from noether_core import NonFiniteError
from noether_core.parity import replay
from parity_tests.drawing import KINDS, draw_value, draw_weight, nest

RUNS = {"jax": noether_jax.Run, "torch": noether_torch.Run}
SCALES = ("unit", "offset", "wild", "whole", "steep", "steep", "nonfinite")
REDUCTIONS = ("mean", "last", "sum", "min", "max", "std", "var", "count", "stack")
NAMES = {"loss": "verlust/größe", "aux/loss": "µ/σ²", "field": "損失", "lr": "lr é"}  # for some trainings
ALIKE = 20  # this many trainings have the same keys and reductions, for JAX compiles for each


def draw_callback(rng: np.random.Generator, keys: list[str], variant: int, unit: str) -> dict[str, Any]:
    """Return a config without its interval's length."""
    names = [str(name) for name in rng.choice(REDUCTIONS, rng.integers(1, 4), replace=False)]
    exact = [key for key in keys if rng.random() < 0.5]
    log = bool(rng.random() < 0.85) and ("last" not in names or all(KINDS[key][variant][1] == () for key in keys))
    form = rng.integers(3)
    return {
        "every_n": unit,
        "keys": exact,
        "patterns": [str(rng.choice(["", "aux", "o", "/", "l"]))] if not exact or rng.random() < 0.5 else [],
        "reduce": names[0] if form == 0 else names if form == 1 else {"": names},
        "log_output": log,
        "save_output": not log or "stack" in names or bool(rng.random() < 0.5),
        "missing": "skip",
        "weight": "weight" if "weight" in keys and rng.random() < 0.7 else None,
    }


def draw_training(number: int) -> tuple[list[Any], list[dict[str, Any]], dict[str, int]]:
    """Return a training's steps, its callbacks' configs, and the run's arguments: always the same of one number."""
    alike, rng = np.random.default_rng([0, number // ALIKE]), np.random.default_rng([1, number])
    keys = [str(key) for key in alike.choice(list(KINDS), alike.integers(1, 6), replace=False)]
    variant, names = int(alike.integers(2)), NAMES if alike.random() < 0.3 else {}
    units = alike.choice(["update", "epoch", "sample"], alike.integers(1, 4), replace=False)
    configs = [draw_callback(alike, keys, variant, str(unit)) for unit in units]
    lacking = {key for key in keys if alike.random() < 0.5}  # in some steps
    scale, absent = str(rng.choice(SCALES)), float(rng.choice([0.0, 0.0, 0.2]))

    def step() -> dict[str, Any] | None:
        chance = rng.random()
        outputs = {key: draw_value(rng, *KINDS[key][variant], scale) for key in keys}
        if "weight" in keys:
            outputs["weight"] = draw_weight(rng, KINDS["weight"][variant][0], scale)
        if chance < absent:
            outputs |= dict.fromkeys(lacking - {"weight"})
        return None if chance < absent / 4 else nest({names.get(key, key): value for key, value in outputs.items()})

    arguments = {
        "updates_per_epoch": int(rng.integers(1, 6)),
        "effective_batch_size": int(rng.integers(1, 10)),
        "accumulation_steps": int(rng.integers(1, 4)),
    }
    steps = [step() for _ in range(rng.integers(1, 15) * arguments["accumulation_steps"])]
    return steps, [_finished(rng, at, config, names) for at, config in enumerate(configs)], arguments


def _finished(rng: np.random.Generator, at: int, config: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    unit = {f"every_n_{config['every_n']}s": int(rng.integers(1, 8)), "id": f"c{at}"}
    rest = {name: value for name, value in config.items() if name != "every_n"}
    keys = [names.get(key, key) for key in config["keys"]]
    nonfinite = str(rng.choice(["propagate", "propagate", "skip", "raise"]))
    return unit | rest | {"keys": keys, "nonfinite": nonfinite}


def in_framework(framework: str, value: Any) -> Any:
    """Return update outputs with each NumPy array as an array of the framework; 64-bit ones, which JAX narrows, as they are."""
    if isinstance(value, dict):
        return {key: in_framework(framework, each) for key, each in value.items()}
    if not isinstance(value, np.ndarray) or value.dtype.itemsize == 8:
        return value
    if framework == "jax":
        return jnp.asarray(value)
    if value.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(value)


def write_trainings(out: Path, count: int) -> None:
    for number in range(count):
        steps, configs, arguments = draw_training(number)
        for framework, run_class in RUNS.items():
            run = run_class(out / f"{number}_{framework}", configs, **arguments)
            with contextlib.suppress(NonFiniteError), run:
                for outputs in steps:
                    with contextlib.suppress(NonFiniteError):
                        run.step(in_framework(framework, outputs))


def write_workloads(out: Path, directory: Path) -> None:
    for recording in sorted(directory.glob("*.safetensors")):
        config = Path(__file__).parents[1] / "examples" / recording.stem / "callbacks.yaml"
        for framework, run_class in RUNS.items():
            run = run_class(out / f"{recording.stem}_{framework}", config, **replay_settings(recording.stem))
            replay(recording, run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--trainings", type=int, required=True)
    parser.add_argument("--recordings", type=Path, required=True)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # patterns that match nothing, casts that overflow
    write_workloads(arguments.out / "workloads", arguments.recordings)
    write_trainings(arguments.out / "trainings", arguments.trainings)


if __name__ == "__main__":
    main()
