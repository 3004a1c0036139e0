"""Tests that `test_synchronisation.py` runs in a process of their own: PyTorch never forgets a device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counted_device import CountedDevice

from noether_core import read_run
from noether_torch import Run, backend, ops


@pytest.fixture(autouse=True)
def _stands_in_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the stand-in's tensors pass for those of a device: they are a subclass, and have no memory of their own."""
    monkeypatch.setattr(backend, "found_strange", lambda _: None)
    for module in (backend, ops):
        monkeypatch.setattr(module, "require_memory", lambda _: None)


CONFIG = {
    "every_n_updates": 2,
    "patterns": [""],
    "reduce": {"": ["mean", "std", "min", "sum", "count"], "norm": ["mean", "last"], "crop": ["last", "stack"]},
    "save_output": True,
    "log_output": False,
}


def outputs(rng: np.random.Generator) -> dict[str, Any]:
    return {
        "loss": rng.normal(size=()).astype(np.float32),
        "norm": rng.normal(size=()),
        "count": rng.integers(-9, 9, ()),
        "ok": np.asarray(rng.random() < 0.5),
        "field": rng.normal(size=(2, 40)).astype(np.float16),
        "large": rng.normal(size=2000).astype(np.float32),
        "ids": rng.integers(0, 2**62, 1500),
        "crop": rng.normal(size=(2, 3)).astype(np.float32),
    }


def trained(path: Path, config: dict[str, Any], steps: int, device: CountedDevice | None, host: tuple[str, ...]) -> Any:
    """Return how often each step waited, and how many transfers it made; `host` names what stays on the host."""
    rng, waits = np.random.default_rng(0), []
    with Run(path, [config]) as run:
        for _ in range(steps):
            given = {}
            for key, value in outputs(rng).items():
                tensor = Run.backend.from_numpy(value)
                given[key] = value.item() if key in host else tensor if device is None else device.put(tensor)
            before = (0, 0) if device is None else (len(device.waits), len(device.to_host))
            run.step(given)
            if device is not None:
                waits.append((len(device.waits) - before[0], len(device.to_host) - before[1]))
    return waits


def saved(path: Path) -> list[dict[str, tuple[str, bytes]]]:
    arrays = [file.load() for file in read_run(path).arrays]
    return [{name: (array.dtype.name, array.tobytes()) for name, array in each.items()} for each in arrays]


CASES = {
    "all on the device": (CONFIG, ()),
    "weighted": (CONFIG | {"weight": "norm"}, ()),
    "weighted, some on the host": (CONFIG | {"weight": "norm"}, ("loss", "ok")),
    "weight on the host": (CONFIG | {"weight": "norm"}, ("norm", "loss")),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_on_a_device_is_waited_for_at_an_intervals_end_and_then_once(case: str, tmp_path: Path) -> None:
    config, host = CASES[case]
    with CountedDevice() as device:
        waits = trained(tmp_path / "device", config, 4, device, host)
    assert waits == [(1, 1) if number in (1, 3) else (0, 0) for number in range(4)]
    trained(tmp_path / "host", config, 4, None, host)
    assert saved(tmp_path / "device") == saved(tmp_path / "host")


@pytest.mark.parametrize("look", [torch.Tensor.item, bool, float, torch.nonzero])
def test_the_device_notices_who_looks(look: Any) -> None:
    with CountedDevice() as device:
        value = device.put(torch.tensor(1.0))
        look(value)
        assert len(device.waits) == 1
        torch.tensor([1.0]).to(value.device)
        assert device.waits[1:] == ["copy to the device that waits"]
        value.cpu()
        assert device.to_host == [4]
