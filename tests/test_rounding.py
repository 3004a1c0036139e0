"""An interval's numbers are rounded once: in vectors, beside exact integers; and where nothing needs to be reduced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import noether_jax
import noether_torch
from benchmarks import rounding
from noether_core import read_run


@pytest.mark.parametrize("kind", rounding.KINDS)
def test_no_rounding_differs_from_exact_integers(kind: str, full: bool) -> None:
    found = rounding.check(kind, 100_000 if full else 2_000)
    assert found.differing == 0
    assert found.cases > 0


@pytest.mark.parametrize("front_end", [noether_jax, noether_torch], ids=lambda module: module.__name__)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("reduce", ["mean", "sum", "min", "max"])
def test_an_interval_of_one_step_logs_what_the_statistics_would(
    front_end: Any, dtype: str, reduce: str, tmp_path: Path
) -> None:
    values = np.array([0.1, -0.0, 0.0, -3.5, 6e-8, 1e4, np.nan, np.inf], dtype)
    whole = {"every_n_updates": 1, "patterns": [""], "reduce": [reduce]}
    for path, more in ((tmp_path / "lone", {}), (tmp_path / "reduced", {"empty": [[]]})):
        with front_end.Run(path, [whole]) as run:
            for count in (6, 8):  # the second has what is not finite
                outputs = {
                    str(at): front_end.Run.backend.from_numpy(values[at : at + 1].reshape(())) for at in range(count)
                }
                run.step({**outputs, **more})
    lone, reduced = (
        {key: series.value for key, series in read_run(tmp_path / name).series.items()} for name in ("lone", "reduced")
    )
    for key, series in lone.items():
        assert series.tobytes() == reduced[key].tobytes(), key
