"""Arrays of one dtype and size are lifted together: the numbers are those of each by itself, and little is compiled."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from noether_core.algebra.sums import Fields, Statistics
from noether_jax import Run, track_outputs
from noether_jax.binary32 import BINARY32, BINARY64
from noether_jax.rows import lift_step_arrays

SIZES = (12, 2_000, 0, 12, 20_000, 2_000, 1, 30_000, 2_000)
KINDS = ("float32", "int32", "bfloat16", "bool", "uint64", "float64")
POSITION = np.int64(7)


def drawn(sizes: tuple[int, ...], *, with_nan: bool) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(0)
    arrays = [
        rng.integers(0, 2 if kind == "bool" else 99, size).astype(jnp.dtype(kind)) for size in sizes for kind in KINDS
    ]
    for array in arrays[::4]:
        if with_nan and array.size and jnp.issubdtype(array.dtype, jnp.floating):
            array[-1] = np.nan
    return arrays


@pytest.mark.sweep(2)
@pytest.mark.parametrize("ops", [BINARY64, BINARY32], ids=["binary64", "binary32"])
@pytest.mark.parametrize("weight", [None, np.float32([0.5])], ids=["unweighted", "a scalar weight"])
@pytest.mark.parametrize("with_nan", [False, True], ids=["finite", "some with a NaN"])
def test_each_array_has_its_own_sums(ops: Any, weight: Any, with_nan: bool) -> None:
    sizes = SIZES if ops is BINARY64 else SIZES[:4]
    fields = Fields(squares=True, extremes=True, weights=weight is not None)

    @jax.jit
    def lifted(arrays: list[jax.Array], weight: Any) -> Any:
        return lift_step_arrays(ops, arrays, weight, jnp.int64(POSITION), fields)

    with jax.enable_x64(True):
        arrays = [jnp.asarray(array) for array in drawn(sizes, with_nan=with_nan)]
        together = numbers(lifted(arrays, weight))
        alone = np.concatenate([numbers(lifted([array], weight)) for array in arrays], -1)
    np.testing.assert_allclose(together, alone, rtol=1e-14)  # a library's own sums of large arrays are not exact
    assert (together[-4:] == alone[-4:]).all()  # but the counts are, and the position


def numbers(sums: Statistics) -> np.ndarray[Any, Any]:
    """Return sums as one array, their expansions added up."""
    present = [field for field in sums if not isinstance(field, tuple) or field]
    return np.stack([np.sum(np.atleast_2d(np.asarray(field, float)), 0) for field in present])


def operations(function: Any, outputs: dict[str, Any]) -> int:
    """Return how many operations a function is traced to, but for those that put its arguments together."""
    lines = str(jax.make_jaxpr(function)(outputs)).splitlines()
    free = ("reshape", "broadcast_in_dim", "stop_gradient")
    return sum(" = " in line and not any(name in line for name in free) for line in lines)


@pytest.mark.parametrize("shape", [(), (3,), (64, 35)])
def test_equal_arrays_add_nothing_to_compile(shape: tuple[int, ...]) -> None:
    counts = []
    for arrays in (3, 30):
        outputs = {f"{at:02}": jnp.zeros(shape) for at in range(arrays)}
        tracker = track_outputs({"every_n_updates": 1, "patterns": [""], "reduce": ["mean", "std"]})
        state = tracker.init(outputs)
        counts.append(operations(lambda given, tracker=tracker, state=state: tracker.update(state, given), outputs))
    assert counts[0] == counts[1]


def test_large_arrays_are_read_alike_on_a_mesh() -> None:
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    config = {"every_n_updates": 1, "patterns": [""], "reduce": ["mean", "std", "max"], "nonfinite": "skip"}
    rng = np.random.default_rng(0)
    sizes = {"a": 16_000, "b": 16_000, "c": 160_000, "d": 160_000}
    outputs = {key: rng.integers(0, 99, size).astype(np.float32) for key, size in sizes.items()}
    outputs["a"][7] = outputs["d"][100_000] = np.nan
    whole = track_outputs(config)
    tracker = track_outputs(config, axis_name="data", mesh=mesh)
    local = {key: jax.ShapeDtypeStruct((size // 8,), jnp.float32) for key, size in sizes.items()}
    update = jax.shard_map(tracker.update, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    found = tracker.compute(jax.jit(update)(tracker.init(local), outputs))
    assert found == whole.compute(jax.jit(whole.update)(whole.init(outputs), outputs))


@pytest.mark.parametrize("steps", [1, 2, 3, 31, 32, 33, 45, 70])
def test_any_number_of_steps_may_be_pending(steps: int, tmp_path: Any) -> None:
    config = {"every_n_updates": steps, "keys": ["x", "y"], "reduce": ["sum", "count"], "missing": "skip"}
    with Run(tmp_path, [config]) as run:
        for at in range(steps):
            run.step({"x": jnp.int32(at), "y": jnp.full(3, at)} if at % 40 else {"y": jnp.full(3, at)})
        total = sum(range(steps))
        entry = run.log_writer.log_entries[-1]
    assert entry[f"y/sum/U{steps}"] == 3 * total
    assert steps == 1 or entry[f"x/sum/U{steps}"] == total - (40 if steps > 40 else 0)
