"""Draw files of probes with right checksums and wrong contents, and read a run that has one in every way there is."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

import noether_torch
from noether_core import NoetherError
from noether_core.emit.arrays import encode_arrays
from noether_core.parity.between_runs.answer import compare_trainings
from noether_core.probes import RecordedTraining, read_training
from noether_core.probes.block import ABOUT, COUNTS, FINGERPRINTS, UPDATES, VALUES
from noether_core.report.report import write_report

STATISTICS = "update_outputs/probes/statistics/E0_U1_S1.safetensors"
ARRAYS = "update_outputs/probes/arrays/E0_U1_S1.safetensors"
Arrays = dict[str, np.ndarray[Any, Any]]

# ------------------------------------------------------------------ a run, and reading it


def make_probed(path: Path) -> None:
    """Train a few updates of nothing, with arrays of the first two: one of them is too large to be kept whole."""
    with noether_torch.Run(
        path, [{"kind": "ProbeCallback", "every_n_updates": 1, "arrays": 2, "array_limit": 64}]
    ) as run:
        for number in range(4):
            weight = torch.arange(60.0).reshape(5, 12) + number
            pieces: Any = {"params": {"weight": weight}, "grads": {"weight": weight / 7}, "losses": float(number)}
            run.step(noether_torch.probe(run.probes_due, batch=torch.ones(3), **pieces))


def read_probes(path: Path) -> RecordedTraining:
    """Read all that a run probed, one key and one array at a time."""
    training = read_training(path)
    for key in training.all_keys:
        updates, columns = training.statistics_columns(key)
        assert len(updates) == len(columns.count) == len(columns.fingerprint)
    for update in training.updates():
        for key in training.keys(update):
            training.statistics(update, key)
            _read_array(training, update, key)
    return training


def _read_array(training: RecordedTraining, update: int, key: str) -> None:
    try:
        array = training.array(update, key)
    except NoetherError:  # damaged
        return
    shape, places = training.shape(update, key), training.places(update, key)
    if array is not None and shape is not None:
        assert array.shape == (shape if places is None else tuple(map(len, places)))
        assert places is None or all(
            len(along) == 0 or along[-1] < size for along, size in zip(places, shape, strict=True)
        )


def compare_and_draw(path: Path, other: Path, page: Path) -> Iterator[str]:
    """Yield what is said of a run that is compared with another, and draw both."""
    found = compare_trainings(path, other)
    yield found.sentence
    yield from found.warnings
    write_report([path, other], page, found)


# ------------------------------------------------------------------ made-up files

_SIZES = st.integers(0, 12) | st.sampled_from(
    [-1, 2**31, 2**62, 2**63 - 1, 2**64, 10**30, 10**4000, 1.5, True, None, "3"]
)
_SHAPES = st.lists(_SIZES, max_size=4) | st.lists(st.just(2**62), min_size=60, max_size=70) | _SIZES
_KEYS = st.sampled_from(
    [
        "data/total",
        "param/weight",
        "loss/total",
        "grad/weight",
        "loss/\x1b[31m",
        "opt/" + "x." * 200,
        "loss/",
        "elsewhere/a",
        "",
    ]
) | st.text(max_size=8)
_LISTS = {"keys": st.lists(_KEYS | _SIZES, max_size=6), "shapes": st.lists(_SHAPES, max_size=6)}
_STRANGE = st.none() | st.booleans() | st.just([[[[]]]]) | st.just({"a": {}}) | st.text(max_size=8) | _SIZES
_TOLD = st.fixed_dictionaries(
    {},
    optional={
        **{name: values | _STRANGE for name, values in _LISTS.items()},
        "probes": st.sampled_from([1, 2, True, "1"]) | _STRANGE,
        "limit": _SIZES | _STRANGE,
        "start": _STRANGE,
        "framework": st.sampled_from(["jax", "torch", "\x1b[31m"]) | _STRANGE,
    },
)
_NUMBERS = st.sampled_from([0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e308, 2**63 - 1, -(2**63), 3.0])
_DTYPES = st.sampled_from([np.int64, np.float64, np.uint64, np.uint8, np.float32, np.bool_])


@st.composite
def _array(draw: st.DrawFn, like: np.ndarray[Any, Any] | None) -> np.ndarray[Any, Any]:
    """Draw an array: one like another with other values, or one of any shape."""
    shape, dtype = draw(st.lists(st.integers(0, 5), max_size=3)), draw(_DTYPES)
    if like is not None and draw(st.booleans()):
        shape, dtype = list(like.shape), like.dtype
    values = np.array(draw(st.lists(_NUMBERS, min_size=1, max_size=6)))
    with np.errstate(all="ignore"):
        return np.resize(values, shape).astype(dtype)


@st.composite
def _altered(draw: st.DrawFn, arrays: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Draw a file like another, with other contents under right checksums."""
    found = dict(arrays)
    told = json.loads(found[ABOUT].tobytes())
    told |= draw(_TOLD)
    if draw(st.booleans()):
        keys = told.get("keys")
        told["keys"] = draw(st.permutations(keys)) if isinstance(keys, list) else keys
    found[ABOUT] = np.frombuffer(json.dumps(told).encode(), np.uint8)
    for name in draw(st.lists(st.sampled_from([*found, COUNTS, VALUES, FINGERPRINTS, UPDATES]) | _KEYS, max_size=3)):
        found[name] = draw(_array(found.get(name)))
    for name in draw(st.lists(st.sampled_from([*found]), max_size=1)):
        del found[name]
    return encode_arrays(found)


def drawn_probes(arrays: Mapping[str, np.ndarray[Any, Any]]) -> st.SearchStrategy[bytes]:
    """Return what draws files of probes, given the arrays of a real one."""
    return _altered(arrays)
