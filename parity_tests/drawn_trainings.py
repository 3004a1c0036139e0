"""Draw whole trainings of several processes, and compute what they must log and save from one process that has all values."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from noether_core import read_run
from parity_tests.devices import to_framework
from parity_tests.reference import Outputs, Tracker, reduced

Files = dict[str, dict[str, tuple[str, tuple[int, ...], bytes]]]
Result = tuple[
    list[list[str]], Files
]  # of each entry its keys and values, in order of the keys; and the saved arrays' bits

WHOLE = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
DTYPES = ["bool", *WHOLE, "float16", "bfloat16", "float32", "float64", "python int", "python float", "python bool"]
SHAPES: list[tuple[int, ...]] = [(), (), (1,), (3,), (2, 2), (0,), (17,)]
FIXED = ["fixed/number", "fixed/array"]  # of one dtype and shape throughout, for `last` and `stack`
NAMES = ["loss", "b/c", "ключ", "loss 2", " ", "🙂"]
UPDATES_PER_EPOCH, EFFECTIVE_BATCH_SIZE = 4, 6


@dataclass(frozen=True)
class Training:
    """Hold a training: `steps[u][a][p]` are the outputs of update u, accumulation step a in process p.

    Attributes:
        updates: how many updates each process makes.
        native: the keys whose values come as the framework's arrays; the others come as NumPy's.
        is_costly: whether in JAX too there are several of these in a step, so that each step compiles anew.
    """

    configs: list[dict[str, Any]]
    accumulation_steps: int
    updates: list[int]
    steps: list[list[list[Outputs]]]
    native: frozenset[str]
    is_costly: bool


def draw_value(rng: np.random.Generator, name: str, shape: tuple[int, ...], scale: str) -> Any:
    """Return a value. The exponents of one key's finite values span little enough for a single process to be exact."""
    if name.startswith("python "):
        own = {"int": "int64", "float": "float64", "bool": "bool"}[name.removeprefix("python ")]
        return draw_value(rng, own, (), scale).item()
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    if name == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if name in WHOLE:
        least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if scale == "ends":
            ends = [least, least + 1, most, most - 1, most // 2, 0, min(most, 2**53 + 1)]
            return np.asarray(rng.choice(np.array(ends, dtype), shape), dtype)
        return np.asarray(rng.integers(max(least, -100), min(most, 100), shape), dtype)
    values = rng.normal(size=shape) * 2.0 ** rng.integers(-6, 6)
    if scale == "offset":
        values = 1000.0 + values / 64
    elif scale == "ends":
        found = (ml_dtypes.finfo if name == "bfloat16" else np.finfo)(dtype)  # XLA takes float32's subnormals as 0
        least_of = float(found.smallest_subnormal if name == "float64" else found.smallest_normal)
        values = rng.integers(-9, 9, shape) * least_of
    elif scale == "odd":
        values = np.where(rng.random(shape) < 0.3, rng.choice([math.nan, math.inf, -math.inf, -0.0], shape), values)
    with np.errstate(over="ignore"):
        return np.asarray(np.asarray(values).astype(dtype))


def draw_weight(rng: np.random.Generator, dtype: str) -> Any:
    if rng.random() < 0.2:
        return np.zeros((), dtype)
    return np.asarray(np.nan if rng.random() < 0.03 else rng.random(), dtype)


def draw_configs(rng: np.random.Generator, weight: str | None) -> list[dict[str, Any]]:
    shared = {"weight": weight, "missing": "skip", "nonfinite": "skip" if rng.random() < 0.5 else "propagate"}

    def interval() -> dict[str, int]:
        unit = str(rng.choice(["updates", "updates", "samples", "epochs"]))
        return {f"every_n_{unit}": int(rng.integers(1, {"updates": 5, "samples": 20, "epochs": 3}[unit]))}

    def some(names: list[str], least: int) -> list[str]:
        return [str(name) for name in rng.permutation(names)[: rng.integers(least, len(names) + 1)]]

    plain = ["mean", "sum", "min", "max", "std", "var", "count"]
    logged = {
        **interval(),
        "id": "log",
        "patterns": [*NAMES, "fixed/array", "weight"],
        "reduce": {"": some(plain, 1)},
        **shared,
    }
    saved = {**interval(), "id": "save", "patterns": ["fixed"], "log_output": False, "save_output": True, **shared}
    saved["reduce"] = {"": [*some(plain, 2), *some(["last", "stack"], 0)]}
    last = {**interval(), "id": "last", "keys": ["fixed/number"], "reduce": {"": ["last", "count"]}, **shared}
    return [config for config in (logged, saved, last) if rng.random() < 0.7] or [logged]


def draw(seed: int, kind: str, count: int) -> Training:
    """Return a training of so many processes.

    Of the kind `keys` they have other keys, orders and dtypes, or none; of the kind `none` one has none.
    """
    rng = np.random.default_rng([seed, count])
    weight = "weight" if rng.random() < 0.3 else None
    names = [*rng.permutation(np.array(NAMES, object))[: rng.integers(1, 5)], *FIXED]
    fixed_dtype = str(rng.choice(DTYPES[:-3]))
    kinds: dict[str, tuple[str, tuple[int, ...], str]] = {
        key: (str(rng.choice(DTYPES)), SHAPES[rng.integers(len(SHAPES))], draw_scale(rng)) for key in names
    }
    kinds["fixed/number"] = (str(rng.choice(DTYPES)), (), draw_scale(rng))
    kinds["fixed/array"] = (fixed_dtype, SHAPES[rng.integers(2, 5)], draw_scale(rng))
    is_alike = kind == "plain"
    own = [names if is_alike else [key for key in names if rng.random() < 0.7] for _ in range(count)]
    if not is_alike and (kind == "none" or rng.random() < 0.5):
        own[int(rng.integers(count))] = []
    most = int(rng.integers(1, 9))
    updates = [most if rng.random() < 0.6 else int(rng.integers(0, most + 1)) for _ in range(count)]
    weight_dtype = str(rng.choice(["float32", "float64"]))

    def outputs_of(process: int) -> Outputs:
        if rng.random() < 0.05:
            return None
        found = {}
        for key in own[process]:
            dtype, shape, scale = kinds[key]
            if key not in FIXED and rng.random() < 0.2:  # another number of elements
                shape = SHAPES[rng.integers(len(SHAPES))]
            if not is_alike and key not in FIXED and scale != "ends" and rng.random() < 0.2:
                dtype = str(rng.choice(DTYPES))
            if is_alike or rng.random() < 0.85:
                found[key] = draw_value(rng, dtype, shape, scale)
        if weight is not None:
            found[weight] = draw_weight(rng, weight_dtype)
        if not is_alike:
            found = {key: found[key] for key in rng.permutation(np.array(list(found), object))}
        return found

    accumulation_steps = int(rng.integers(1, 4))
    steps = [
        [[outputs_of(at) if update < updates[at] else None for at in range(count)] for _ in range(accumulation_steps)]
        for update in range(max(updates))
    ]
    native = frozenset(key for key in names if rng.random() < 0.5)
    return Training(draw_configs(rng, weight), accumulation_steps, updates, steps, native, seed % 8 == 0)


def draw_scale(rng: np.random.Generator) -> str:
    return str(rng.choice(["unit", "unit", "offset", "ends", "odd"]))


def run_steps(run_class: Any, training: Training, path: Path, process: int | None, **arguments: Any) -> None:
    """Make a run: the part of one process, or, for None, all values in the order of update, step and process."""
    count = len(training.updates)
    configs = training.configs if process is not None else [without_last(config) for config in training.configs]
    with run_class(
        path,
        configs,
        accumulation_steps=training.accumulation_steps * (count if process is None else 1),
        updates_per_epoch=UPDATES_PER_EPOCH,
        effective_batch_size=EFFECTIVE_BATCH_SIZE,
        **arguments,
    ) as run:
        for update in range(len(training.steps) if process is None else training.updates[process]):
            for step in training.steps[update]:
                for outputs in step if process is None else [step[process]]:
                    run.step(None if outputs is None else converted(run_class, outputs, training))


def converted(run_class: Any, outputs: dict[str, Any], training: Training) -> dict[str, Any]:
    """Return outputs with arrays of the framework; of JAX, which has 64 bits only when told to, for narrower ones."""
    is_jax = run_class.backend.name == "JAX"
    found = dict(outputs)
    for key in sorted(training.native & outputs.keys()):
        value = outputs[key]
        if isinstance(value, np.ndarray) and not (is_jax and value.dtype.itemsize == 8):
            found[key] = to_framework(run_class, value)
            if is_jax and not training.is_costly:
                break
    return found


def without_last(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config that asks for the same without `last`."""
    return config | {"reduce": {"": [name for name in config["reduce"][""] if name != "last"]}}


def read_result(path: Path) -> Result:
    """Return what a run logged and saved, in a form in which equal means equal in every bit."""
    if not (path / "config.yaml").exists():
        return [], {}
    read = read_run(path)
    assert not read.problems, read.problems
    entries = [sorted(f"{key}: {value!r}" for key, value in entry.items()) for entry in read.entries]
    files = {
        f"{file.interval}/{file.iteration}": {name: bits(array) for name, array in file.load().items()}
        for file in read.arrays
    }
    return entries, files


def bits(array: Any) -> tuple[str, tuple[int, ...], bytes]:
    if array.dtype.kind not in "biu":  # a NaN is a NaN
        array = np.where(np.isnan(array.astype(np.float64)), np.array(np.nan, array.dtype), array)
    return str(array.dtype), array.shape, array.tobytes()


def expected(training: Training, run_class: Any, path: Path) -> Result:
    """Return what the processes must log and save together: what one logs that has all values, and their last ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_steps(run_class, training, path, None, processes=1)
    return add_lasts(training, read_result(path))


def add_lasts(training: Training, without: Result) -> Result:
    """Return what a run gave without `last`, and the newest values of each process."""
    entries, files = without
    by_update = {int(next(each for each in entry if each.startswith("update: "))[8:]): entry for entry in entries}
    for config in training.configs:
        if "last" not in config["reduce"][""]:
            continue
        for update in interval_ends(config, len(training.steps)):
            _add_last(config, training, update, by_update, files)
    return list(by_update.values()), files


def interval_ends(config: dict[str, Any], updates: int) -> list[int]:
    """Return after which updates an interval ends; the last one too, in whose middle training may end."""
    unit, every = next((name, n) for name, n in config.items() if name.startswith("every_n_"))
    each = {"every_n_updates": 1, "every_n_samples": EFFECTIVE_BATCH_SIZE}.get(unit, 1 / UPDATES_PER_EPOCH)
    counts = [math.floor(update * each) // every for update in range(updates + 1)]
    ends = {update for update in range(1, updates + 1) if counts[update] > counts[update - 1]}
    return sorted({*ends, updates} - {0})


def _add_last(
    config: dict[str, Any], training: Training, update: int, by_update: dict[int, list[str]], files: Files
) -> None:
    newest: dict[str, dict[int, Any]] = {}
    for step in training.steps[update - 1]:
        for process, outputs in enumerate(step):
            for key in FIXED:
                if key in (outputs or {}):
                    newest.setdefault(key, {})[process] = outputs[key]  # type: ignore[index]
    skip = config["nonfinite"] == "skip"
    is_alone = len(training.steps[update - 1][-1]) == 1  # then it is the value itself
    unit, every = next((name, n) for name, n in config.items() if name.startswith("every_n_"))
    interval = f"{unit.removeprefix('every_n_')[0].upper()}{every}"
    iteration = f"E{update // UPDATES_PER_EPOCH}_U{update}_S{update * EFFECTIVE_BATCH_SIZE}"
    for key, of_each in newest.items():
        values = [of_each[process] for process in sorted(of_each)]
        if config["id"] == "save":
            array = np.asarray(values[0]) if is_alone else np.stack([np.asarray(value) for value in values])
            if not (skip and array.size == 1 and not np.isfinite(array.astype(np.float64)).all()):
                files.setdefault(f"save/{interval}/{iteration}", {})[f"{key}/last"] = bits(array)
        elif key == "fixed/number":
            number = alone(values[0], skip=skip) if is_alone else mean_of(values, skip=skip)
            if number is not None:
                by_update[update] = sorted([*by_update[update], f"{key}/last/{interval}: {number!r}"])


def alone(value: Any, *, skip: bool) -> bool | int | float | None:
    number: bool | int | float = np.asarray(value).item()
    return None if skip and not np.isfinite(number) else number


def mean_of(values: list[Any], *, skip: bool) -> int | float | None:
    """Return the mean of numbers, rounded once, with its sign; an int if they are ints and it is one."""
    if all(np.asarray(value).dtype.kind in "biu" for value in values):
        total = sum(int(value) for value in values)
        if total % len(values) == 0:
            return total // len(values)
    tracker = Tracker("update", 1, (), (), "mean", True, False, "skip" if skip else "propagate")
    mean = reduced(tracker, [(1, value, None) for value in values], 1)
    if mean == 0.0 and sum(Fraction(float(value)) for value in values if np.isfinite(value)) < 0:
        return -0.0
    return None if mean is None else float(mean)
