"""States in the middle of an interval, saved and restored as people do: msgpack, Orbax, npz."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from noether_core import read_run
from noether_core.errors import NoetherError
from noether_jax import Run, track_outputs
from noether_jax.optax import record_outputs

EXAMPLE = {"a": jnp.bfloat16(0), "b": jnp.float32(0), "c": jnp.zeros(3, jnp.float16), "d": jnp.bool_(0)}
CONFIGS: list[dict[str, Any]] = [
    {
        "every_n_updates": 4,
        "keys": ["a", "b", "c"],
        "reduce": ["mean", "std", "last"],
        "log_output": False,
        "save_output": True,
    },
    {"every_n_updates": 3, "patterns": ["b", "d"], "id": "q"},
]


def by_msgpack(path: Path, state: Any, fresh: Any) -> Any:
    return flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state))


def by_npz(path: Path, state: Any, fresh: Any) -> Any:
    np.savez(path / "state.npz", *jax.tree.leaves(state))
    with np.load(path / "state.npz", allow_pickle=False) as saved:
        return jax.tree.unflatten(jax.tree.structure(fresh), [saved[name] for name in saved.files])


def by_orbax(path: Path, state: Any, fresh: Any) -> Any:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "state", state)
        checkpointer.wait_until_finished()
        return checkpointer.restore(path / "state", fresh)


WAYS: dict[str, Callable[[Path, Any, Any], Any]] = {"msgpack": by_msgpack, "npz": by_npz, "orbax": by_orbax}


def outputs(number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    return {key: jnp.asarray(rng.normal(size=value.shape), value.dtype) for key, value in EXAMPLE.items()}


def entries(path: Path) -> str:
    read = read_run(path)
    return repr(read.entries) + repr([(str(file.iteration), file.load()) for file in read.arrays])


@pytest.mark.parametrize("way", WAYS)
def test_a_trackers_state_and_what_a_run_carries_go_on_to_the_bit(way: str, tmp_path: Path) -> None:
    tracker = track_outputs(CONFIGS[0])
    wanted = state = tracker.init(EXAMPLE)
    with Run(tmp_path / "whole", CONFIGS) as run:
        for number in range(10):
            run.step(outputs(number))
            wanted = tracker.update(wanted, outputs(number))
    first = Run(tmp_path / "parts", CONFIGS)
    first.start()
    optimizer = optax.chain(record_outputs(first, EXAMPLE), optax.adam(0.1))
    opt_state = optimizer.init(jnp.ones(2))
    for number in range(5):
        opt_state = first.step(optimizer.update(jnp.ones(2), opt_state, update_outputs=outputs(number))[1])
        state = tracker.update(state, outputs(number))
    first.log_writer.close()
    (tmp_path / "tracker").mkdir()
    state = WAYS[way](tmp_path / "tracker", state, tracker.init(EXAMPLE))
    with Run(tmp_path / "parts", CONFIGS, start={"update": 5}) as run:
        optimizer = optax.chain(record_outputs(run, EXAMPLE), optax.adam(0.1))
        opt_state = WAYS[way](tmp_path, opt_state, optimizer.init(jnp.ones(2)))
        for number in range(5, 10):
            opt_state = run.step(optimizer.update(jnp.ones(2), opt_state, update_outputs=outputs(number))[1])
            state = tracker.update(state, outputs(number))
    assert entries(tmp_path / "parts") == entries(tmp_path / "whole")
    assert repr(tracker.compute(state)) == repr(tracker.compute(wanted))


def by_flax_bytes(path: Path, state: Any) -> Any:  # lists come back as dicts of their places
    return flax.serialization.from_bytes(None, flax.serialization.to_bytes(state))


def by_raw_msgpack(path: Path, state: Any) -> Any:
    return flax.serialization.msgpack_restore(flax.serialization.msgpack_serialize(state))


def by_npz_leaves(path: Path, state: Any) -> Any:
    leaves, form = jax.tree.flatten(state)
    file = io.BytesIO()
    np.savez(file, *leaves)
    file.seek(0)
    with np.load(file, allow_pickle=False) as saved:
        return jax.tree.unflatten(form, [saved[name] for name in saved.files])


@pytest.mark.parametrize("save", [by_flax_bytes, by_raw_msgpack, by_npz_leaves])
def test_a_runs_state_dict_goes_on_to_the_bit(save: Callable[[Path, Any], Any], tmp_path: Path) -> None:
    with Run(tmp_path / "whole", CONFIGS) as run:
        for number in range(10):
            run.step(outputs(number))
    first = Run(tmp_path / "parts", CONFIGS)
    first.start()
    for number in range(5):
        first.step(outputs(number))
    saved = save(tmp_path, first.state_dict())
    first.log_writer.close()
    with Run(tmp_path / "parts", CONFIGS) as run:
        run.load_state_dict(saved)
        for number in range(5, 10):
            run.step(outputs(number))
    assert entries(tmp_path / "parts") == entries(tmp_path / "whole")


@pytest.mark.parametrize(
    "other",
    [
        {"keys": ["a", "c"]},
        {"keys": ["b"]},
        {"keys": ["a", "b", "d"]},
        {"reduce": ["mean"]},
        {"reduce": ["mean", "last", "min"]},
    ],
)
def test_bytes_of_another_config_are_refused(other: dict[str, Any]) -> None:
    state, fresh = (track_outputs(config).init(EXAMPLE) for config in (CONFIGS[0], CONFIGS[0] | other))
    with pytest.raises(NoetherError, match=r"made by another config"):
        flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state))
