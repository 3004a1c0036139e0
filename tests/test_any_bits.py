"""Whatever bits an array has: NumPy warns of nothing, nothing raises, NaN stays NaN, and what is saved keeps its bits.

NumPy warns of a signaling NaN where it is cast or compared, of infinities that cancel, and of squares that overflow; here, as
in all these tests, a warning is an error.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import orjson
import pytest
from any_bits import (
    CHANGES,
    COMPLEX,
    FLOATS,
    INTS,
    NAMES,
    SEEDS,
    any_array,
    changed,
    dtype_of,
    patterns,
    same_bits,
    training_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.names import align
from noether_core.names import fingerprint as mark
from noether_core.parity.between_runs import compare_trainings
from noether_core.parity.divergence import STAGES, Comparison, Divergence, MemoryTraining, Noise
from noether_core.parity.divergence.causes import with_causes
from noether_core.probes import read_training, statistics_of
from noether_core.probes.fingerprint import as_reals, fingerprint
from noether_core.report import write_plot, write_report
from noether_torch.numpy_arrays import to_tensor

examples = settings(max_examples=settings.default.max_examples // 4)
FAILED = "could not be asked"  # of a rule


@examples
@given(SEEDS, NAMES)
def test_what_is_known_of_an_array_counts_its_nan_and_nothing_is_warned_of(seed: int, name: str) -> None:
    array = any_array(np.random.default_rng(seed), name)
    found = statistics_of(array)
    with np.errstate(all="ignore"):
        wide = as_reals(array).astype(np.float64)
    is_nan = bool(np.isnan(wide).any()) or not wide.size
    assert [math.isnan(each) for each in (found.min, found.max)] == [is_nan, is_nan]
    assert is_nan or (found.min, found.max) == (wide.min(), wide.max())
    assert found.fingerprint == fingerprint(array) == fingerprint(np.flip(array))
    assert mark(array) == mark(array.T)


@examples
@given(SEEDS, NAMES)
def test_any_bits_are_the_same_as_themselves(seed: int, name: str) -> None:
    generator = np.random.default_rng(seed)
    arrays = {key: any_array(generator, name) for key in ("data/x", "param/w", "act/a", "loss/total", "grad/w")}
    copies = {key: array.copy() for key, array in arrays.items()}
    found = compare_trainings(MemoryTraining("a", "torch", {1: arrays}), MemoryTraining("b", "jax", {1: copies}))
    if any(array.size for array in arrays.values()):
        assert found.outcome == "same"
        assert not [note for note in found.warnings if not note.startswith("no twins")]
    assert align({"w": arrays["param/w"]}, {"v": copies["param/w"]}).unmatched_torch == {}


@examples
@given(SEEDS, NAMES, st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from(STAGES), st.sampled_from(CHANGES))
def test_trainings_that_have_gone_wrong_are_compared(
    seed: int, name: str, share: float, stage: str, change: str
) -> None:
    a = training_of(seed, name, share)
    b = changed(a, seed, stage, change)
    found = compare_trainings(a, b)
    assert not [note for note in found.warnings if FAILED in note]
    form = orjson.loads(orjson.dumps(found.as_json()))
    assert form["exit_code"] == {"same": 0, "differs": 1, "cannot say": 2}[found.outcome]
    assert Noise.of_twins(a, [b]).twins <= 1


@examples
@given(SEEDS, NAMES, st.sampled_from([0.0, 0.05, 0.5]), st.sampled_from(STAGES), st.sampled_from(CHANGES))
def test_no_rule_fails_whatever_it_is_asked(seed: int, name: str, share: float, stage: str, change: str) -> None:
    a = training_of(seed, name, share, updates=2)
    b = changed(a, seed, stage, change)
    keys = [key for key in a.keys(2) if key.startswith(stage + "/")]
    key = keys[seed % len(keys)]
    first = Divergence(1 + seed % 2, stage, key, 1.0, 1e-7)
    for one, other in ((a, b), (b, a)):
        found = with_causes(one, other, None, Comparison("differs", "", ("a", "b"), first))
        assert found.warnings == ()


def test_a_rule_that_fails_is_a_note_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing(MemoryTraining):
        def array(self, update: int, key: str) -> Any:
            raise RuntimeError("no \x1b[31m array")

    a = Refusing("a", "torch", {1: {"loss/total": 1.0}})
    comparison = Comparison("differs", "", ("a", "b"), Divergence(1, "loss", "loss/total", 1.0, 1e-7))
    (note,) = with_causes(a, a, None, comparison).warnings
    assert note.startswith("loss_causes could not be asked about loss/total (RuntimeError: no \\x1b[31m array)")


# ---------------------------------------------------------------------- on disk, of both frameworks

OF_TORCH = {*INTS, *FLOATS, *COMPLEX, "float8_e4m3fnuz", "float8_e5m2fnuz"}
FORMS = [
    (noether_torch, np.array, ""),
    (noether_torch, to_tensor, "tensor"),
    (noether_jax, np.array, ""),
    (noether_jax, None, "jax"),
]


def probed(front_end: Any, path: Path, arrays: dict[str, Any], limit: int) -> Path:
    callback = {"kind": "ProbeCallback", "every_n_updates": 1, "arrays": 1, "array_limit": limit}
    with front_end.Run(path, [callback]) as run:
        for _ in range(2):
            run.step(front_end.probe(run.probes_due, batch=arrays, params=arrays, losses=arrays["some"]))
    return path


def arrays_of(name: str) -> dict[str, Any]:
    every = patterns(name)
    shapes = {"matrix": np.resize(every, (9, 7)), "turned": np.resize(every, (5, 6)).T, "none": every[:0]}
    return {"every": every, **shapes, "some": every.reshape(-1)[-1].reshape(())}


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", sorted(OF_TORCH))
def test_saved_arrays_keep_their_bits_and_compare_as_the_same(name: str, tmp_path: Path) -> None:
    arrays = arrays_of(name)
    runs = []
    for at, (front_end, convert, _) in enumerate(FORMS):
        given = {key: convert(array) if convert else on_device(array) for key, array in arrays.items()}
        whole = read_training(probed(front_end, tmp_path / f"{at}-whole", given, 2**20))
        for key, array in arrays.items():
            kept = whole.array(1, f"param/{key}")
            assert kept is not None
            assert same_bits(kept, as_reals(array)), (at, key)
        runs.append(probed(front_end, tmp_path / str(at), given, 64))
    for run in runs[1:]:
        assert compare_trainings(runs[0], run).outcome == "same"
    write_report(runs[:2], tmp_path / "page.html", compare_trainings(*runs[:2]))
    write_plot(runs[:2], tmp_path / "plot.html")


TRACKED = (
    *("float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2", "int64", "uint64", "bool"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
)


@pytest.mark.sweep(6)
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("name", TRACKED)
def test_every_reduction_takes_any_bits_alike_everywhere(name: str, every: int, tmp_path: Path) -> None:
    """Also where each update is logged, of which nothing needs to be reduced."""
    values, reduce = patterns(name), ["mean", "sum", "min", "max", "std", "var", "count"]
    configs: list[dict[str, Any]] = [
        {"every_n_updates": every, "keys": ["lone"]},
        {"every_n_updates": every, "keys": ["lone"], "reduce": "last", "log_as": "last/{key}", "nonfinite": "skip"},
        {"every_n_updates": every, "keys": ["lone", "all"], "reduce": reduce},
        {"every_n_updates": every, "keys": ["all"], "reduce": "stack", "save_output": True, "log_output": False},
    ]
    logs = []
    for at, (front_end, convert, _) in enumerate(FORMS):
        with front_end.Run(tmp_path / str(at), configs) as run:
            for number in range(4):
                turned = np.roll(values, -number)
                lone = turned[:1].reshape(())
                run.step({"lone": (convert or on_device)(lone), "all": (convert or on_device)(turned)})
        found = read_run(tmp_path / str(at))
        logs.append([repr(sorted(entry.items())) for entry in found.entries])
        stacked = found.arrays[-1].load()["all"]
        assert same_bits(stacked, np.stack([np.roll(values, -number) for number in range(4 - every, 4)]))
    assert all(log == logs[0] for log in logs)


def on_device(array: np.ndarray[Any, Any]) -> Any:
    import jax

    with jax.enable_x64(array.dtype.itemsize >= 8):
        return jax.numpy.asarray(array)


def test_every_signaling_nan_is_among_what_is_drawn() -> None:
    for name, bits in (("float16", 0x7C01), ("bfloat16", 0x7F81), ("float32", 0x7F800001)):
        assert bits in patterns(name).view(f"u{dtype_of(name).itemsize}")
    assert ml_dtypes.bfloat16 == dtype_of("bfloat16").type
