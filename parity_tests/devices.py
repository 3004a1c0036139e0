"""Put arrays where the suite is to run: `PARITY_DEVICE=cuda` (docs/scale.md); JAX has a default device of its own."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

import noether_torch
from noether_core.run import Run

DEVICE = os.environ.get("PARITY_DEVICE", "cpu")


def to_torch(value: Any) -> torch.Tensor:
    """Return a tensor of its own memory."""
    return noether_torch.Run.backend.from_numpy(np.asarray(value)).to(DEVICE)


def to_framework(run_class: type[Run], value: np.ndarray[Any, Any]) -> Any:
    """Return an array of the framework that a run is of."""
    return to_torch(value) if run_class is noether_torch.Run else run_class.backend.from_numpy(value)
