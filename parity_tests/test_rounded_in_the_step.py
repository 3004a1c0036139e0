"""What a compiled step computes and returns in a narrow dtype is tracked as it was rounded, and not as it was before.

XLA may leave a rounding out where the value is widened again at once. On a CPU it does not, so what shows that nothing is left
out here is the program that XLA gets; where JAX has a GPU, the numbers show it too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import noether_jax
import noether_torch
from noether_core import read_run

DTYPES = (jnp.bfloat16, jnp.float16, jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.float32)
CONFIG: dict[str, Any] = {"every_n_updates": 1, "patterns": [""], "reduce": ["mean", "max", "std"]}
KEYS = ("many", "few", "one")


def step(x: jax.Array, dtype: Any) -> dict[str, jax.Array]:
    values = (x * 1.1 + 0.3).astype(dtype)
    return dict(zip(KEYS, (values, values[:17], (x[5] * 1.1 + 0.3).astype(dtype)), strict=True))


def logged(path: Path) -> dict[str, list[Any]]:
    return {key: series.value.tolist() for key, series in read_run(path).series.items()}


@pytest.mark.parametrize("weight", [None, "one"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_numbers_are_those_of_what_the_step_returns(dtype: Any, weight: str | None, tmp_path: Path) -> None:
    config = CONFIG if weight is None else CONFIG | {"weight": weight}
    with jax.enable_x64(dtype == jnp.float32):
        x = jnp.asarray(
            np.random.default_rng(0).normal(size=3000), jnp.float64 if dtype == jnp.float32 else jnp.float32
        )
        returned = jax.jit(step, static_argnums=1)(x, dtype)
        with noether_jax.Run(tmp_path / "fused", [config]) as run:
            tracked = run.init(returned)
            compiled = jax.jit(lambda tracked, x: run.track(tracked, step(x, dtype)))
            text = compiled.lower(tracked, x).as_text()
            run.step(compiled(tracked, x))
    with noether_torch.Run(tmp_path / "hooks", [config]) as run:
        run.step({key: np.asarray(value) for key, value in returned.items()})
    assert logged(tmp_path / "fused") == logged(tmp_path / "hooks")
    barred = re.search(r"optimization_barrier .*: (.*)", text)
    assert barred, text
    assert len(re.findall(r"tensor<", barred[1])) == len(KEYS) + (weight is not None)
