"""A value is taken at the call: what happens to it later changes nothing, and nothing keeps it."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hook_cases import NAN, each_front_end, every

import noether_jax
import noether_torch
from noether_core import read_run

SHAPES = [(), (1,), (3,), (2000,)]
TAKEN = every(9, reduce={"loss": ["mean", "last"]}, log_output=False, save_output=True)


def taken(path: Path, shape: tuple[int, ...]) -> None:
    """Check what is saved of the values 1 and 3."""
    (file,) = read_run(path).arrays
    arrays = file.load()
    assert arrays["loss/mean"] == 2.0
    np.testing.assert_array_equal(arrays["loss/last"], np.full(shape, 3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_tensor_is_taken_at_the_call(shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [TAKEN]) as run:
        for value in (1.0, 3.0):
            tensor = torch.full(shape, value, dtype=dtype)
            if value == 3.0:
                noted = run.callbacks[0].tracked_values["loss"]
            run.step({"loss": tensor})
            tensor.add_(100.0)
    assert noted[0] == 1.0
    taken(tmp_path, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_view_of_a_buffer_that_is_used_again_is_taken_at_the_call(shape: tuple[int, ...], tmp_path: Path) -> None:
    buffer = torch.zeros((2, *shape), dtype=torch.float64)
    with noether_torch.Run(tmp_path, [TAKEN]) as run:
        for value in (1.0, 3.0):
            buffer.fill_(value)
            run.step({"loss": buffer[1]})
        buffer.fill_(7.0)
    taken(tmp_path, shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@each_front_end
def test_a_numpy_array_is_taken_at_the_call(front_end: Any, shape: tuple[int, ...], dtype: Any, tmp_path: Path) -> None:
    buffer = np.zeros(shape, dtype)
    with front_end.Run(tmp_path, [TAKEN]) as run:
        for value in (1.0, 3.0):
            buffer[...] = value
            run.step({"loss": buffer})
            buffer[...] = NAN
    taken(tmp_path, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_donated_buffer_is_taken_at_the_call(shape: tuple[int, ...], tmp_path: Path) -> None:
    add_two = jax.jit(lambda value: value + 2, donate_argnums=0)
    value = jnp.full(shape, 1.0)
    with noether_jax.Run(tmp_path, [TAKEN]) as run:
        for _ in range(2):
            run.step({"loss": value})
            donated, value = value, add_two(value)
            assert donated.is_deleted()
    taken(tmp_path, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_keeps_the_graph_of_a_tensor_that_requires_grad(shape: tuple[int, ...], tmp_path: Path) -> None:
    saved = []
    with noether_torch.Run(tmp_path, [TAKEN]) as run:
        weight = torch.ones(shape, requires_grad=True)
        for value in (1.0, 3.0):
            inner = weight * value
            loss = inner * inner / value  # saves `inner` for the backward pass
            saved.append(weakref.ref(inner))
            run.step({"loss": loss})
            loss.sum().backward()
            assert weight.grad is not None
            del inner, loss
            gc.collect()
            assert [each() for each in saved] == [None] * len(saved)
    taken(tmp_path, shape)


def test_the_graph_is_freed_without_a_backward_pass(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, [every(10, reduce=["mean", "last"])]) as run:
        weight = torch.ones((), requires_grad=True)
        inner = weight * 2
        loss = inner * inner
        saved = weakref.ref(inner)
        run.step({"loss": loss})
        del inner, loss
        gc.collect()
        assert saved() is None
        assert run.callbacks[0].tracked_values == {"loss": [4.0, 4.0]}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("hook_inside", [False, True])
def test_tensors_of_inference_mode_are_taken_beside_others(
    shape: tuple[int, ...], hook_inside: bool, tmp_path: Path
) -> None:
    with noether_torch.Run(tmp_path, [TAKEN]) as run:
        with torch.inference_mode():
            first = torch.full(shape, 1.0)
            if hook_inside:
                run.step({"loss": first})
        if not hook_inside:
            run.step({"loss": first})
        run.step({"loss": torch.full(shape, 3.0, requires_grad=True)})
    taken(tmp_path, shape)
