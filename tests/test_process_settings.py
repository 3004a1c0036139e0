"""What a user has set for the whole process, or for a block of it, changes no bit of a run, and the run leaves it as it is."""

from __future__ import annotations

import decimal
import inspect
import itertools
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import noether_torch

Setting = Callable[[], AbstractContextManager[Any]]
REDUCTIONS = ["mean", "sum", "min", "max", "std", "count"]
PROBED = ("float32()", "float32(3,)", "float16(3,)", "bfloat16(1500,)")
DTYPES = [
    np.dtype(each)
    for each in ("f2", ml_dtypes.bfloat16, ml_dtypes.float8_e5m2, "f4", "f8", "i1", "u2", "i4", "i8", "u8", "?")
]


@contextmanager
def between(change: Callable[[], Any], back: Callable[[], Any]) -> Iterator[None]:
    change()
    try:
        yield
    finally:
        back()


class Calls(TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def default_dtype(dtype: torch.dtype) -> AbstractContextManager[Any]:
    return between(lambda: torch.set_default_dtype(dtype), lambda: torch.set_default_dtype(torch.float32))


@contextmanager
def shallow() -> Iterator[None]:
    limit, now = sys.setrecursionlimit, sys.getrecursionlimit()
    with between(partial(limit, len(inspect.stack()) + 150), partial(limit, now)):
        yield


def deterministic() -> AbstractContextManager[Any]:
    use = torch.use_deterministic_algorithms
    return between(lambda: use(True), lambda: use(False))


OF_TORCH: dict[str, Setting] = {
    **{
        f"autocast {name}": partial(torch.autocast, "cpu", getattr(torch, name)) for name in ("bfloat16", "float16")
    },
    **{f"default {name}": partial(default_dtype, getattr(torch, name)) for name in ("float64", "bfloat16")},
    "default device": partial(torch.device, "meta"),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "deterministic": deterministic,
    "calls": Calls,
    "operations": Operations,
}  # fmt: skip
OF_PYTHON: dict[str, Setting] = {
    "errstate": lambda: np.errstate(all="raise"),
    "warnings": partial(warnings.catch_warnings, action="error"),
    "printoptions": lambda: np.printoptions(precision=1, threshold=1, legacy="1.13"),
    "decimal": lambda: decimal.localcontext(prec=2),
    "int digits": lambda: between(partial(sys.set_int_max_str_digits, 640), partial(sys.set_int_max_str_digits, 4300)),
    "recursion": shallow,
}
SETTINGS = OF_TORCH | OF_PYTHON
CASES = [
    pytest.param(names, is_around, id=f"{', '.join(names)}, {where}")
    for names in [*((name,) for name in SETTINGS), *itertools.combinations(OF_TORCH, 2)]
    for where, is_around in (("around the run", True), ("around each step", False))
]


def outputs(rng: np.random.Generator) -> dict[str, Any]:
    """Draw outputs of every dtype and of several shapes; NaN and infinities are among them."""
    found: dict[str, Any] = {"python": rng.random(), "int": int(rng.integers(2**60)), "list": rng.random(3).tolist()}
    for dtype, shape in itertools.product(DTYPES, ((), (3,), (1500,))):
        values = np.asarray(rng.normal(size=shape) * 50 if dtype.kind in "fV" else rng.integers(0, 100, shape)).astype(
            dtype
        )
        if dtype == np.float32 and shape == (3,):
            values[rng.integers(3)] = rng.choice([np.nan, np.inf, -np.inf])
        found[f"{dtype.name}{shape}"] = noether_torch.Run.backend.from_numpy(values)
    return found


def trained(path: Path, setting: Setting, *, is_around: bool) -> dict[str, bytes]:
    """Train within a setting, or let each step alone be; return what the run and its probes wrote."""
    rng = np.random.default_rng(0)
    drawn = [outputs(rng) for _ in range(3)]
    around, each = (setting, nullcontext) if is_around else (nullcontext, setting)
    arrays = [name for name in drawn[0] if name.endswith("(3,)")]
    configs = [
        {"every_n_updates": 2, "patterns": ["1", "3", "6", "8", "o", "t"], "reduce": REDUCTIONS, "save_output": True},
        {"id": "kept", "every_n_updates": 2, "keys": arrays, "reduce": ["last", "stack"],
         "log_output": False, "save_output": True},
        {"kind": "ProbeCallback"},
    ]  # fmt: skip
    with around(), noether_torch.Run(path, configs) as run:
        for step in drawn:
            with each():
                params = {name: step[name] for name in PROBED}
                run.step({**step, **noether_torch.probe(run.probes_due, params=params)})
    found = {"log": path / "metrics" / "1.jsonl"} | {
        file.name: file for file in path.glob("update_outputs/**/U2/*.safetensors")
    }
    return {name: file.read_bytes() for name, file in found.items()}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return trained(tmp_path_factory.mktemp("expected"), nullcontext, is_around=True)


def settings() -> list[Any]:
    return [
        np.geterr(), np.get_printoptions(), decimal.getcontext().prec, sys.getrecursionlimit(),
        torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"),
        random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(),  # type: ignore[index]
    ]  # fmt: skip


@pytest.mark.sweep(30)
@pytest.mark.parametrize(("names", "is_around"), CASES)
def test_what_is_set_changes_no_bit_and_stays(
    names: tuple[str, ...], is_around: bool, expected: dict[str, bytes], tmp_path: Path
) -> None:
    @contextmanager
    def setting() -> Iterator[None]:
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(SETTINGS[name]())
            before = settings()
            yield
            assert settings() == before

    assert trained(tmp_path, setting, is_around=is_around) == expected
