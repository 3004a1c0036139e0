"""What a tracker holds does not grow with the steps of an interval, and none of it is the user's."""

from __future__ import annotations

import gc
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import noether_jax
import noether_torch
from noether_core.signal_handlers import Link

CONFIG = {"every_n_updates": 10**6, "keys": ["loss"], "reduce": ["mean", "std", "max", "last"]}
SAVED = CONFIG | {"log_output": False, "save_output": True}
FRONT_ENDS = (noether_jax, noether_torch)


def device_bytes() -> int:
    """Return the bytes of all JAX arrays and of all PyTorch storages there are."""
    # not the fake ones, without storage, that compiling in an earlier test may have left
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(storages.values()) + sum(each.nbytes for each in jax.live_arrays())


def host_bytes(*roots: object) -> int:
    """Return the bytes of all Python objects that some objects lead to.

    But for types, modules, what functions refer to, loggers and the handlers of signals: they lead to those that were there.
    """
    found: dict[int, object] = {}
    todo = list(roots)
    while todo:
        each = todo.pop()
        if id(each) in found or isinstance(each, type | ModuleType | Link | logging.Logger):
            continue
        found[id(each)] = each
        todo += [each.__closure__] if isinstance(each, FunctionType) else gc.get_referents(each)
    return sum(map(sys.getsizeof, found.values()))


def torch_hooks(run: Any, shape: tuple[int, ...]) -> Callable[[], None]:
    return lambda: run.step({"loss": torch.ones(shape)})


def jax_hooks(run: Any, shape: tuple[int, ...]) -> Callable[[], None]:
    value = np.ones(shape, np.float32)
    return lambda: run.step({"loss": jax.device_put(value)})


def fused(run: Any, shape: tuple[int, ...]) -> Callable[[], None]:
    value = np.ones(shape, np.float32)
    tracked = run.init({"loss": value})
    step = jax.jit(run.track, donate_argnums=0)

    def once() -> None:
        nonlocal tracked
        tracked = run.step(step(tracked, {"loss": value}))

    return once


WAYS = {"torch hooks": torch_hooks, "jax hooks": jax_hooks, "fused": fused}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(), (1,), (10**6,)], ids=["number", "one element", "a million elements"])
def test_what_is_held_does_not_grow(
    way: str, shape: tuple[int, ...], full: bool, tmp_path: Path, sized: Callable[..., Iterator[Any]]
) -> None:
    is_large = shape == (10**6,)
    steps = 10_000 if full else 20 if is_large else 820
    # up to 256 steps are only stacked at first, so what is held is compared at steps that many apart
    marks = range(19 if is_large and not full else 276, steps, 256)
    with (noether_torch if way == "torch hooks" else noether_jax).Run(tmp_path, [SAVED]) as run:
        step = WAYS[way](run, shape)
        step()
        gc.collect()
        gc.freeze()  # what is there already need not be searched again
        before = device_bytes()
        held = []
        for number in sized(range(steps), "steps"):
            step()
            if number in marks:
                held.append((host_bytes(run, step), device_bytes() - before))
        gc.unfreeze()
    host, device = zip(*held, strict=True)
    assert max(host) - host[0] <= 1_000  # a list of the values would have 50,000 more
    assert max(device) - device[0] <= 5_000
    assert max(host) <= 10**6 + 4 * np.prod(shape)  # JAX's ways hold an array here to send it
    assert max(device) <= 4 * 4 * np.prod(shape) + 100_000


BESIDE_LARGE = """
import sys, tempfile
import torch
from noether_torch import Run

def resident() -> int:
    return int(open("/proc/self/statm").read().split()[1]) * 4096

config = {{"every_n_updates": 10**6, "keys": ["field", "small", "one"], "reduce": ["mean", "last"], "log_output": False,
          "save_output": True}}
run = Run(tempfile.mkdtemp(), [config])
run.start()
most = 0
for number in range({steps}):
    run.step({{"field": torch.ones(10**6), "small": torch.ones(17), "one": torch.ones(1)}})
    if number == 5:
        before = resident()
    most = max(most, resident())
print(most - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_small_arrays_beside_large_ones_do_not_scatter_the_heap(full: bool) -> None:
    """The field's 4 MB are to find the place of the last step's free, though 256 small arrays are held meanwhile."""
    program = BESIDE_LARGE.format(steps=10_000 if full else 300)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], env=environment, capture_output=True, check=True
    )
    assert int(done.stdout) < 60 * 2**20  # it was 950 MB


# ---------------------------------------------------------------------- the user's buffers


@pytest.mark.parametrize("at", [3, slice(0, 2), slice(None)])
def test_a_view_keeps_no_tensor_alive(at: Any, tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [SAVED]) as run:
        run.step({"loss": torch.ones(10**6)[at]})
        gc.collect()
        before = device_bytes()
        for _ in range(3):
            buffer = torch.ones(10**6)
            gone = weakref.ref(buffer)
            run.step({"loss": buffer[at]})
            del buffer
            gc.collect()
            assert gone() is None
        assert device_bytes() - before < (5 * 10**6 if at == slice(None) else 10**5)


@pytest.mark.parametrize("at", [3, slice(0, 2), slice(None)])
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_view_keeps_no_numpy_array_alive(front_end: Any, at: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [SAVED]) as run:
        for _ in range(3):
            buffer = np.ones(10**5)
            gone = weakref.ref(buffer)
            run.step({"loss": buffer[at]})
            del buffer
            gc.collect()
            assert gone() is None


@pytest.mark.parametrize("shape", [(), (10**5,)])
def test_a_jax_array_is_not_kept_alive(shape: tuple[int, ...], tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path, [SAVED]) as run:
        for _ in range(3):
            value = jnp.ones(shape)
            gone = weakref.ref(value)
            run.step({"loss": value})
            del value
            gc.collect()
            assert gone() is None


# ---------------------------------------------------------------------- buffers that are used again


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2000,)])
@pytest.mark.parametrize("mode", ["autocast", "inference_mode", "compiled", "set_default_dtype"])
def test_a_compiled_steps_output_is_taken_at_the_call_in_every_mode(
    shape: tuple[int, ...], mode: str, tmp_path: Path
) -> None:
    static = torch.zeros(shape)  # as the outputs of a CUDA graph, each replay overwrites it

    def replay(value: float) -> torch.Tensor:
        return static.fill_(value)

    if mode == "compiled":
        replay = torch.compile(lambda value: static.fill_(value), backend="aot_eager")
    contexts: dict[str, Any] = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference_mode": torch.inference_mode,
        "compiled": torch.no_grad,
        "set_default_dtype": torch.no_grad,
    }
    if mode == "set_default_dtype":
        torch.set_default_dtype(torch.float64)
    try:
        with noether_torch.Run(tmp_path, [SAVED]) as run:
            for value in (1.001, 3.001, 3.002):
                with contexts[mode]():
                    run.step({"loss": replay(value)})
            static.fill_(9.0)
            mean, _, greatest, last = run.callbacks[0].tracked_values["loss"]
    finally:
        torch.set_default_dtype(torch.float32)
    values = np.float32([1.001, 3.001, 3.002])
    assert (mean, greatest) == (np.float32(values.astype(float).mean()), values[2])
    np.testing.assert_array_equal(last, np.full(shape, values[2]))
