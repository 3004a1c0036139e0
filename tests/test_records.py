"""A record is one step's outputs, whatever its class; what nothing tracks of it never fails a step."""

from __future__ import annotations

import dataclasses
import random
from collections import OrderedDict, UserDict, namedtuple
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import attrs
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
import torch
from flax import nnx
from hook_cases import each_front_end, every, logged
from transformers.utils import ModelOutput

import noether_jax
from noether_core import UpdateOutputError, read_run
from noether_core.select import flatten

# ---------------------------------------------------------------------- every class of record, generated

Fields = dict[str, Any]


def as_named_tuple(fields: Fields) -> Any:
    return namedtuple("Outputs", fields)(**fields)


def as_dataclass(fields: Fields) -> Any:
    return dataclasses.make_dataclass("Outputs", fields)(**fields)


def as_slotted(fields: Fields) -> Any:
    return dataclasses.make_dataclass("Outputs", fields, slots=True, frozen=True)(**fields)


def as_flax(fields: Fields) -> Any:
    return flax.struct.dataclass(type("Outputs", (), {"__annotations__": dict.fromkeys(fields, Any)}))(**fields)


def as_model_output(fields: Fields) -> Any:
    namespace = {"__annotations__": dict.fromkeys(fields, Any), **dict.fromkeys(fields)}
    return dataclasses.dataclass(type("Outputs", (ModelOutput,), namespace))(**fields)


def as_attrs(fields: Fields) -> Any:
    return attrs.make_class("Outputs", list(fields))(**fields)


def as_pydantic(fields: Fields) -> Any:
    types: Any = dict.fromkeys(fields, (Any, ...))
    return pydantic.create_model("Outputs", **types)(**fields)


CLASSES = [
    dict, OrderedDict, UserDict, MappingProxyType, as_named_tuple, as_dataclass, as_slotted, as_flax, as_model_output, as_attrs,
    as_pydantic, lambda fields: SimpleNamespace(**fields),
]  # fmt: skip
NAMES = ["loss", "acc", "aux", "grads", "lr"]


def draw(rng: random.Random, depth: int = 0) -> tuple[Any, dict[str, float]]:
    """Return a record of any classes and what it is as a flat dict."""
    fields: Fields = {}
    flat: dict[str, float] = {}
    for name in rng.sample(NAMES, rng.randint(1, len(NAMES))):
        if depth < 3 and rng.random() < 0.4:
            fields[name], nested = draw(rng, depth + 1)
            flat |= {f"{name}/{key}": value for key, value in nested.items()}
        elif rng.random() < 0.15:
            fields[name] = None
        else:
            fields[name] = flat[name] = rng.choice([0.5, 1.25, 3.0, -7.0])
    make = rng.choice(CLASSES)
    if make is as_model_output and not isinstance(next(iter(fields.values())), float):
        make = dict  # a ModelOutput's first field is required, and a record there is taken for all its fields
    return make(fields), flat


@pytest.mark.sweep(40)
@pytest.mark.parametrize("seed", range(150))
def test_any_record_is_flattened_as_a_dict_of_its_fields(seed: int) -> None:
    record, flat = draw(random.Random(seed))
    assert flatten(record) == flat


@each_front_end
@pytest.mark.filterwarnings("ignore:.*pattern .* matched no")
@pytest.mark.parametrize("seed", range(12))
def test_a_step_of_any_record_is_one_step(front_end: Any, seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    seen: dict[str, list[float]] = {}
    evaluated: dict[str, list[float]] = {}
    with front_end.Run(tmp_path, [{"every_n_updates": 6, "patterns": ["loss", "acc"]}]) as run:
        for number in range(6):
            record, flat = draw(rng)
            run.step(record)
            for key, value in flat.items():
                seen.setdefault(key, []).append(value)
            if number == 3:
                with run.evaluate():
                    for _ in range(3):
                        record, flat = draw(rng)
                        run.step(record)
                        for key, value in flat.items():
                            evaluated.setdefault(key, []).append(value)
        assert run.counter.update == 6
    means = {
        name: float(sum(map(Fraction, values)) / len(values))
        for prefix, end, found in (("", "/U6", seen), ("eval/", "", evaluated))
        for key, values in found.items()
        if "loss" in key or "acc" in key
        for name in [f"{prefix}{key}{end}"]
    }
    found = {key: value for entry in read_run(tmp_path).entries for key, value in entry.items() if "/" in key}
    assert found == means


# ---------------------------------------------------------------------- what is a record, and what several steps


@each_front_end
def test_a_list_of_records_is_several_steps_and_a_bare_tuple_none(front_end: Any, tmp_path: Path) -> None:
    outputs = namedtuple("outputs", "loss acc")
    with front_end.Run(tmp_path, [every(2)]) as run:
        run.step([outputs(1.0, 0.0), outputs(2.0, 0.0)])
        run.step(outputs(3.0, 0.0))
        with pytest.raises(UpdateOutputError, match=r"is tuple; expected a dict.*write a list of dicts"):
            run.step(({"loss": 9.0}, {"loss": 9.0}))
        with pytest.raises(UpdateOutputError, match="is tuple; expected a dict"):
            run.step(())
        with run.evaluate(), pytest.raises(UpdateOutputError, match="is tuple; expected a dict"):
            run.step(({"loss": 9.0},))
        run.step([])
        run.step(outputs(5.0, 0.0))
        assert run.counter.update == 4
    assert logged(tmp_path, "loss/U2") == [(2, 1.5), (4, 4.0)]


def test_what_torch_returns_with_named_places_is_a_record() -> None:
    found = flatten({"best": torch.max(torch.tensor([[1.0, 3.0]]), 1), "pair": (1.0, 2.0)})
    assert list(found) == ["best/values", "best/indices", "pair"]


@each_front_end
def test_losses_in_a_record_are_logged_by_their_names(front_end: Any, tmp_path: Path) -> None:
    config = {"kind": "OnlineLossCallback", "every_n_updates": 2}
    with front_end.Run(tmp_path, [config]) as run:
        run.step(losses=SimpleNamespace(ce=1.0, kl=2.0))
        run.step(losses=as_named_tuple({"ce": 3.0, "kl": 4.0}))
    assert logged(tmp_path, "loss/online/ce/U2") == [(2, 2.0)]
    assert logged(tmp_path, "loss/online/kl/U2") == [(2, 3.0)]


@each_front_end
def test_values_of_ones_own_come_as_records_too(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [every(9)]) as run:
        run.log(as_named_tuple({"acc": 0.5, "note": "good"}))
        run.log({"by_class": {0: 0.25, 1: 0.75}})
    (entry,) = read_run(tmp_path).entries
    assert {key: entry[key] for key in ("acc", "note", "by_class/0", "by_class/1")} == {
        "acc": 0.5, "note": "good", "by_class/0": 0.25, "by_class/1": 0.75,
    }  # fmt: skip


# ---------------------------------------------------------------------- what nothing tracks


class Unreadable:
    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)

    def __len__(self) -> int:
        raise RuntimeError("nobody may look")

    __iter__ = __eq__ = __bool__ = __array__ = __len__  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Unopenable(dict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("nobody may look")


def bottomless() -> dict[str, Any]:
    outer: dict[str, Any] = {}
    inner = outer
    for _ in range(3000):
        inner["a"] = inner = {}
    return outer


def unset() -> Any:
    made = dataclasses.make_dataclass("Unset", ["x", "y"])
    type.__setattr__(made, "x", property(lambda _: 1 / 0, lambda *_: None))
    return made(1, 2)


def endless() -> dict[str, Any]:
    outer: dict[str, Any] = {"inner": {}}
    outer["inner"]["outer"] = outer
    return outer


UNTRACKED = [
    lambda: {"x": "text"},
    lambda: {"x": [1, "two", [3]]},
    lambda: {"x": (np.ones(2), None)},
    lambda: {"x": Unreadable()},
    lambda: {3: 1.0, (1, 2): object(), None: 2, b"x": 3, True: 4},
    lambda: {"a/b": 1, "a": {"b": 2}, 3: 1, "3": 2},
    endless, bottomless,
    lambda: {**endless(), "pair": (1, 2), 3: ()},
    lambda: {**bottomless(), "pair": (1, 2)},
    lambda: {"x": Unopenable(a=1), "y": unset(), "z": nnx.Param("text")},
    lambda: {"x": np.ma.masked, "y": np.array([None]), "z": 10**400, "w": np.datetime64("nat")},
    lambda: {"x": jax.random.key(0), "y": jnp.ones(2, jnp.complex64), "z": jax.ShapeDtypeStruct((), jnp.float32)},
    lambda: {"x": torch.ones(2, device="meta"), "y": torch.ones(2).to_sparse()},
    lambda: {"x": dataclasses.make_dataclass("Config", [("rate", Any)])([1, "two"]), "opt": (as_named_tuple({"mu": 1}),)},
    lambda: {"state": nnx.state(nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(0))))},
    lambda: {"x": type("Slots", (), {"__slots__": ("a",)})(), "kinds": dict, "function": len},
]  # fmt: skip


@each_front_end
@pytest.mark.parametrize("make", UNTRACKED)
def test_what_nothing_tracks_never_fails_a_step(front_end: Any, make: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [every(3), {"every_n_updates": 3, "patterns": ["acc"]}]) as run:
        for number in range(3):
            beside = make()
            run.step({**beside, "loss": float(number), "acc": 1.0} if number else {"loss": 0.0, "acc": 1.0, **beside})
        with run.evaluate():
            run.step({**make(), "loss": 7.0})
    assert logged(tmp_path, "loss/U3") == [(3, 1.0)]
    assert logged(tmp_path, "eval/loss") == [(3, 7.0)]


@pytest.mark.parametrize("make", UNTRACKED[:11] + UNTRACKED[14:])
def test_what_nothing_tracks_never_fails_a_fused_step(make: Any, tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path, [every(3)]) as run:
        tracked = run.init({**make(), "loss": jnp.float32(0)})
        step = jax.jit(lambda tracked, loss: run.track(tracked, {"loss": loss, **make()}))
        for number in range(3):
            tracked = run.step(step(tracked, jnp.float32(number)))
    assert logged(tmp_path, "loss/U3") == [(3, 1.0)]


@pytest.mark.parametrize("jitted", [False, True])
def test_an_nnx_state_is_tracked_by_its_path(jitted: bool, tmp_path: Path) -> None:
    model = nnx.Sequential(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(3, 1, rngs=nnx.Rngs(0)))
    keys = ["params/layers/0/bias", "params/layers/2/kernel"]
    with noether_jax.Run(tmp_path, [{"every_n_updates": 1, "keys": keys, "reduce": ["mean", "max"]}]) as run:
        if jitted:
            tracked = run.init({"params": nnx.state(model)})
            run.step(jax.jit(lambda tracked, state: run.track(tracked, {"params": state}))(tracked, nnx.state(model)))
        else:
            run.step({"params": nnx.state(model)})
    kernel = np.asarray(model.layers[2].kernel[...])
    assert logged(tmp_path, "params/layers/0/bias/mean/U1") == [(1, 0.0)]
    assert logged(tmp_path, "params/layers/2/kernel/max/U1") == [(1, float(kernel.max()))]


def test_a_fused_step_of_a_record(tmp_path: Path) -> None:
    outputs = flax.struct.dataclass(type("outputs", (), {"__annotations__": {"loss": Any, "aux": Any}}))
    with noether_jax.Run(tmp_path, [{"every_n_updates": 4, "keys": ["loss", "aux/acc"]}]) as run:
        tracked = run.init(outputs(loss=jnp.float32(0), aux=as_named_tuple({"acc": jnp.float32(0)})))
        step = jax.jit(lambda tracked, x: run.track(tracked, outputs(loss=x, aux=as_named_tuple({"acc": x * 2}))))
        for number in range(4):
            tracked = run.step(step(tracked, jnp.float32(number)))
    assert logged(tmp_path, "loss/U4") == [(4, 1.5)]
    assert logged(tmp_path, "aux/acc/U4") == [(4, 3.0)]
