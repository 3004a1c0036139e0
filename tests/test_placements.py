"""Update outputs and weights on several devices: single ones, meshes of several orders and forms, the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from noether_core import read_run
from noether_core.errors import UpdateOutputError
from noether_jax import Run

X = np.arange(16, dtype=np.float32)


def placements() -> dict[str, Any]:
    devices = jax.devices()
    line = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    square = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    return {
        "host": "host",
        "uncommitted": None,
        "first": devices[0],
        "second": devices[1],
        "replicated": NamedSharding(line, P()),
        "sharded": NamedSharding(line, P("data")),
        "reversed": NamedSharding(Mesh(np.array(devices[::-1]), ("data",)), P("data")),
        "half": NamedSharding(Mesh(np.array(devices[:4]), ("data",)), P("data")),
        "square": NamedSharding(square, P(("data", "model"))),
    }


def put(value: Any, place: Any) -> Any:
    if isinstance(place, str):
        return value
    if isinstance(place, NamedSharding) and np.ndim(value) == 0:
        place = NamedSharding(place.mesh, P())
    return jnp.array(value) if place is None else jax.device_put(value, place)


def test_values_and_weights_anywhere_give_the_same_numbers(full: bool, tmp_path: Path) -> None:
    rng, places = np.random.default_rng(0), placements()
    config = [{"every_n_updates": 4, "patterns": ["x", "y"], "reduce": ["mean", "std", "last"]}]
    config[0] |= {"weight": "w", "log_output": False, "save_output": True}
    for number in range(25 if full else 10):
        has_weights = bool(rng.integers(2))
        weight = X + 1 if has_weights else np.float32(3)
        with Run(tmp_path / str(number), config) as run:
            for _ in range(4):
                x, y, w = (places[str(rng.choice(list(places)))] for _ in range(3))
                given = {"x": put(X, x), "y": put(X[::-1].copy() ** 2, y), "w": put(weight, w)}
                run.step(given)
                if rng.integers(2) and isinstance(given["x"], jax.Array):
                    given["x"].delete()  # as a donation does
        found = read_run(tmp_path / str(number)).arrays[0].load()
        for key, value in (("x", X.astype(float)), ("y", X[::-1].astype(float) ** 2)):
            weights = np.broadcast_to(weight.astype(float), value.shape)
            mean = (value * weights).sum() / weights.sum()
            assert found[f"{key}/mean"] == np.float32(mean)
            variance = (weights * (value - mean) ** 2).sum() / weights.sum()
            np.testing.assert_allclose(found[f"{key}/std"], np.sqrt(variance), rtol=2e-7)
            assert np.array_equal(found[f"{key}/last"], value)


@pytest.mark.parametrize("key", ["x", "w"])
def test_what_lies_in_the_hosts_memory_is_refused(key: str, tmp_path: Path) -> None:
    offloaded = jax.device_put(X, SingleDeviceSharding(jax.devices()[0], memory_kind="pinned_host"))
    with Run(tmp_path, [{"every_n_updates": 2, "keys": ["x"], "weight": "w"}]) as run:
        with pytest.raises(
            UpdateOutputError, match=f"{key!r} is in memory of the kind 'pinned_host'; expected 'device'"
        ):
            run.step({"x": jnp.asarray(X), "w": jnp.asarray(X), key: offloaded})
        run.step({"x": jnp.asarray(X), "w": jnp.float32(1)})
    assert read_run(tmp_path).series["x/U2"].value.tolist() == [7.5]
