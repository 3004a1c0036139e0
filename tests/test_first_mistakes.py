"""What people do wrong in their first hour gets an answer in their own words."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hook_cases import array, each_front_end, every
from rich.console import Console

import noether_jax
import noether_torch
from noether_core import MissingKeyError, NoetherError, read_run
from noether_core.errors import RunDirectoryError
from noether_core.inspect.show import show_run

# ---------------------------------------------------------------------- the same directory twice


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "noether_core.emit.run_log"]


def shown(path: Path) -> str:
    console = Console(width=160, record=True, file=None)
    with console.capture() as capture:
        console.print(show_run(read_run(path)))
    return capture.get()


@each_front_end
def test_a_training_that_takes_another_ones_place_says_so_once(
    front_end: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(steps: int) -> None:
        with front_end.Run(tmp_path / "mine", every=1) as run:
            for _ in range(steps):
                run.step({"loss": array(front_end, 1.0)})

    with caplog.at_level(logging.WARNING):
        train(3)
        assert told(caplog) == []
        train(0)  # which logs nothing, and so takes no place
        assert told(caplog) == []
        train(2)
    assert len(told(caplog)) == 1
    for part in ("metrics/1.jsonl", "iter_superseded", "'mine_2'", "load its state"):
        assert part in told(caplog)[0]
    assert "3 entries of earlier starts are superseded" in shown(tmp_path / "mine")


def test_a_training_that_goes_on_takes_no_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with noether_torch.Run(tmp_path, every=1) as run:
        for _ in range(3):
            run.step({"loss": 1.0})
        state = run.state_dict()
    with caplog.at_level(logging.WARNING):
        with noether_torch.Run(tmp_path, every=1) as run:
            run.load_state_dict(state)
            run.step({"loss": 1.0})
            run.load_state_dict(state)
            run.step({"loss": 1.0})
        with noether_torch.Run(tmp_path, every=1, start={"update": 2}) as run:
            run.step({"loss": 1.0})
    assert told(caplog) == []


def test_superseded_probes_are_no_empty_table(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, callbacks=[{"kind": "ProbeCallback"}, every(1)]) as run:
        for _ in range(3):
            run.step({"loss": torch.tensor(1.0), **noether_torch.probe(run.probes_due, losses=torch.tensor(1.0))})
    assert "probes: 1 keys" in shown(tmp_path)
    with noether_torch.Run(tmp_path, [every(1)]) as run:
        run.step({"loss": torch.tensor(1.0)})
    assert "probes:" not in shown(tmp_path)


