"""What virtual processes pool is what one process would have, to the bit: of any reductions, dtypes, weights and splits."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

from noether_core.config import TrackAdditionalOutputsCallbackConfig
from noether_core.reduce.accumulate import OutputAccumulator
from noether_core.reduce.agreement import DUE, Offer
from noether_core.reduce.finish import Computation
from noether_core.reduce.host import HostBackend
from noether_core.reduce.lasts import lasts_of
from noether_core.reduce.partial import Partials
from noether_core.reduce.pool import Pool
from noether_core.reduce.state import pack
from noether_core.reduce.threads import ThreadExchange, run_threads

CASES = 50  # of a seed; each is of two intervals on average
REDUCTIONS = ["mean", "sum", "min", "max", "std", "var", "count"]
INTS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "bfloat16", "float32", "float64"]
DTYPES = ["bool", *INTS, *FLOATS, "python int", "python float", "python bool"]
KEYS = ["a", "b/c", "ключ", "weight"]
Values = dict[str, Any]


class Case(NamedTuple):
    """Hold a config, and what each of some processes had in each of some intervals: a list of steps, in order."""

    config: TrackAdditionalOutputsCallbackConfig
    intervals: list[list[list[Values]]]


def dtype_of(name: str) -> Any:
    return np.dtype(getattr(ml_dtypes, name, name))


def drawn_value(rng: np.random.Generator, name: str, shape: tuple[int, ...], center: float, kind: str) -> Any:
    """Return a value of a dtype. The exponents of one key's finite values span little enough for one process to be exact."""
    if name.startswith("python "):
        value = drawn_value(rng, {"int": "int64", "float": "float64", "bool": "bool"}[name[7:]], (), center, kind)
        return value.item()
    dtype = dtype_of(name)
    if name == "bool":
        return np.asarray(rng.random(shape) < 0.5)
    if name in INTS:
        least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if kind == "ends":
            ends = [least, least + 1, most, most - 1, most // 2, 0, 2**53 + 1 if most > 2**53 else most]
            return np.asarray(rng.choice(np.array(ends, dtype), shape), dtype)
        return np.asarray(rng.integers(max(least, -100), min(most, 100), shape), dtype)
    unit = {"tiny": np.finfo if name not in ("bfloat16",) else ml_dtypes.finfo}.get(kind)
    values = rng.normal(size=shape) * 2.0 ** rng.integers(-6, 6) + center
    if unit is not None:
        least = float(unit(dtype).smallest_subnormal)
        values = rng.integers(-9, 9, shape) * least
    if kind == "ends":
        most = float((ml_dtypes if name == "bfloat16" else np).finfo(dtype).max)
        values = rng.choice([most / 2, -most / 2, most / 4, most / 8, 0.0], shape)
        values = values * (1 if name != "float64" else 2.0**-12)
    values = np.asarray(values)
    if kind == "odd":
        values = np.where(rng.random(shape) < 0.3, rng.choice([math.nan, math.inf, -math.inf, -0.0], shape), values)
    with np.errstate(over="ignore"):
        return np.asarray(values.astype(dtype))


def drawn_shape(rng: np.random.Generator) -> tuple[int, ...]:
    return [(), (), (), (1,), (3,), (2, 2), (0,), (40,)][rng.integers(8)]


def drawn_case(rng: np.random.Generator) -> Case:
    reductions = [str(each) for each in rng.permutation(REDUCTIONS)[: rng.integers(1, 8)]]
    is_weighted = rng.random() < 0.3
    config = TrackAdditionalOutputsCallbackConfig(
        every_n_updates=1,
        patterns=[""],
        reduce=reductions if len(reductions) > 1 else reductions[0],
        weight="weight" if is_weighted else None,
        nonfinite="skip" if rng.random() < 0.5 else "propagate",
    )
    kinds = {}
    for key in KEYS[: 3 if not is_weighted else 4][-int(rng.integers(1, 4)) :]:
        kind = str(rng.choice(["plain", "plain", "ends", "tiny", "odd"]))
        center = float(rng.choice([0.0, 0.0, 1.0, -1e3, 1e6]))
        kinds[key] = (str(rng.choice(DTYPES)), kind, center, drawn_shape(rng))
    if is_weighted:
        kinds["weight"] = (str(rng.choice(["float32", "float64", "int32"])), "plain", 0.0, ())
    return Case(config, [drawn_interval(rng, kinds, is_weighted) for _ in range(int(rng.integers(1, 4)))])


def drawn_interval(rng: np.random.Generator, kinds: dict[str, Any], is_weighted: bool) -> list[list[Values]]:
    found = []
    for _ in range(8):
        steps = []
        for _ in range(int(rng.choice([0, 1, 1, 3]))):
            present = [key for key in kinds if rng.random() < 0.9 or key == "weight"]
            values = {}
            for key in present:
                name, kind, center, shape = kinds[key]
                if rng.random() < 0.1 and key != "weight":  # another shape than before
                    shape = drawn_shape(rng)
                if kind == "plain" and rng.random() < 0.1 and key != "weight":
                    name = str(rng.choice(DTYPES))
                values[key] = drawn_value(rng, name, shape, center, kind)
            if is_weighted:
                values["weight"] = np.abs(values["weight"])
            steps.append({key: values[key] for key in rng.permutation(list(values)).tolist()})
        found.append(steps)
    return found


def accumulated(config: TrackAdditionalOutputsCallbackConfig, steps: list[Values]) -> Partials:
    accumulator = OutputAccumulator(HostBackend(), config)
    for at, values in enumerate(steps):
        weight = values.get("weight") if config.weight else None
        accumulator.add(tuple(values), tuple(values.values()), 1, at, weight)
    return accumulator.partials()


def finished(config: TrackAdditionalOutputsCallbackConfig, partials: Partials) -> dict[str, Any]:
    computed = Computation(config).compute(partials, 1)
    assert not computed.errors
    numbers = computed.scalars()
    arrays = {f"array {name}": (str(array.dtype), array.tobytes()) for name, array in computed.arrays().items()}
    return {name: (type(value).__name__, repr(value)) for name, value in numbers.items()} | arrays


def exactly(config: TrackAdditionalOutputsCallbackConfig, steps: list[Values]) -> dict[str, tuple[Any, ...]]:
    """Return what the plain definitions say of the finite values, as fractions: count, sum, least, greatest, mean, variance."""
    values: dict[str, list[tuple[Fraction, Fraction]]] = {}
    for step in steps:
        weight = Fraction(np.asarray(step["weight"]).item()) if config.weight else Fraction(1)
        for key, value in step.items():
            numbers = np.asarray(value).reshape(-1)
            numbers = numbers.tolist() if numbers.dtype.kind in "biuO" else numbers.astype(np.float64).tolist()
            of_key = values.setdefault(key, [])
            of_key += [
                (Fraction(number), Fraction(1) if key == "weight" else weight)
                for number in numbers
                if math.isfinite(number) and (key == "weight" or weight)  # what has weight 0 counts for nothing
            ]
    found = {}
    for key, pairs in values.items():
        mass = sum((weight for _, weight in pairs), Fraction(0))
        mean = sum((value * weight for value, weight in pairs), Fraction(0)) / mass if mass else None
        var = None if mean is None else sum(((v - mean) ** 2 * w for v, w in pairs), Fraction(0)) / mass
        plain = [value for value, _ in pairs]
        found[key] = (
            len(plain),
            sum(plain, Fraction(0)),
            min(plain, default=None),
            max(plain, default=None),
            mean,
            var,
        )
    return found


def pooled(case: Case, exchange: ThreadExchange) -> list[Partials]:
    pool = Pool(exchange, [case.config])
    found = []
    for interval in case.intervals:
        own = accumulated(case.config, interval[exchange.index])
        round_ = pool.pool([Offer(own, DUE, lasts_of(own, 1))], (0, 1, 1), "test")
        found.append(round_.pooled[0].partials)
    return found


@pytest.mark.sweep(5)
@pytest.mark.parametrize("seed", range(200))
def test_pooled_is_what_one_process_would_have(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 9))
    cases = [drawn_case(rng) for _ in range(CASES)]

    def body(exchange: ThreadExchange) -> list[Any]:
        return [pooled(case, exchange) for case in cases]

    of_each = run_threads(count, body, time_limit=20)
    for at, case in enumerate(cases):
        for number, interval in enumerate(case.intervals):
            steps = [step for process in interval[:count] for step in process]
            one = finished(case.config, accumulated(case.config, steps))
            first, *others = [found[at][number] for found in of_each]
            assert finished(case.config, first) == one, (seed, at, number, case.config)
            assert all(pack_of(other) == pack_of(first) for other in others)
            if seed % 4 == 0:
                check_exactly(case.config, first, steps)


def pack_of(partials: Partials) -> Any:
    packed = pack(partials)
    return packed["keys"], [vector.tobytes() for vector in packed["sums"].values()], packed["elements"].tolist()


def check_exactly(config: TrackAdditionalOutputsCallbackConfig, partials: Partials, steps: list[Values]) -> None:
    """Compare with the plain definitions, where all values were finite."""
    computed = Computation(config).compute(partials, 1)
    expected = exactly(config, steps)
    assert set(partials.keys) == set(expected)
    odd = set() if computed.nonfinite is None else set(computed.nonfinite.keys)
    for entry, value in zip(computed.schema.entries, computed.values, strict=True):
        key = computed.keys[entry.at]
        if key in odd and config.nonfinite != "skip":
            continue
        if entry.reduction == "std" or (entry.reduction == "count" and config.weight):  # it counts what has weight 0
            continue
        if entry.reduction == "var" and math.isinf(value or 0.0):  # squares beyond binary64
            continue
        exact = expected[key][["count", "sum", "min", "max", "mean", "var"].index(entry.reduction)]
        if exact is not None and (config.weight or entry.reduction == "var") and 0 < abs(exact) < PRODUCTS_END:
            continue
        if exact is None or value is None or (isinstance(value, float) and math.isnan(value)):
            assert exact is None, (key, entry.reduction, exact, value)
        elif isinstance(value, int):
            assert value == exact, (key, entry.reduction)
        else:
            assert is_nearest(value, exact, bool(partials.wide[entry.at])), (key, entry.reduction, value, float(exact))


PRODUCTS_END = Fraction(2) ** -960  # of products below it some bits are lost, in one process as in many


def is_nearest(value: float, exact: Fraction, is_wide: bool) -> bool:
    kind = np.float64 if is_wide else np.float32
    if math.isinf(value):
        return abs(exact) > Fraction(float(np.finfo(kind).max))
    with np.errstate(over="ignore"):
        beside = [float(np.nextafter(kind(value), kind(end))) for end in (-math.inf, math.inf)]
    return all(math.isinf(other) or abs(Fraction(value) - exact) <= abs(Fraction(other) - exact) for other in beside)
