"""Be one of two processes of JAX's, of two devices each, and print what it counts of what a compiled step carried."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from noether_jax import Run

CONFIG: dict[str, Any] = {"every_n_updates": 100, "keys": ["x"], "reduce": ["sum", "count"]}
WAYS = ("shards", "crossed", "all", "replicated")


def tracked_by(way: str, path: Path) -> list[float]:
    """Return the sum and the number of elements that this process counts of two steps, and of a third one after renewal."""
    axes = ("model", "data") if way == "crossed" else ("data", "model")
    mesh = jax.make_mesh((2, 2), axes, axis_types=(AxisType.Auto,) * 2)
    spec = {"shards": P("data"), "crossed": P("data"), "all": P(("data", "model"))}.get(way)
    run = Run(path / f"{way}{jax.process_index()}", [CONFIG])
    if spec is None:
        tracked, step, values = run.init({"x": np.zeros(8, np.float32)}), jax.jit(track_of(run)), P("data")
    else:
        names, members = spec[0], 4 if way == "all" else 2
        tracked = run.init({"x": np.zeros(8 // members, np.float32)}, axis_name=names, mesh=mesh)
        mapped = jax.shard_map(track_of(run), mesh=mesh, in_specs=(spec, spec), out_specs=spec)
        step, values = jax.jit(mapped), spec
    run.start()
    found: list[float] = []
    for number in range(3):
        x = np.arange(8, dtype=np.float32) + 10 * number
        given = jax.make_array_from_callback((8,), NamedSharding(mesh, values), lambda at, x=x: x[at])
        tracked = run.step(step(tracked, given))
        if number == 1:
            found += counted(run)
            run._fused._renew()  # type: ignore[union-attr]
            tracked = run.tracked
    return found + counted(run)


def track_of(run: Run) -> Any:
    return lambda tracked, x: run.track(tracked, {"x": x})


def counted(run: Run) -> list[float]:
    partials = run.callbacks[0].sources[1].partials()  # type: ignore[attr-defined]
    assert partials.keys == ("x",)  # in every process, whichever counts it, so that none is said to lack it
    return [float(sum(part[0] for part in partials.statistics.total)), int(partials.elements[0])]


if __name__ == "__main__":
    port, index, folder = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(index))
    print(json.dumps({way: tracked_by(way, Path(folder)) for way in WAYS}), flush=True)
    jax.distributed.shutdown()
