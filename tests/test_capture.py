from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noether_core import NoetherError, read_run
from noether_torch import Run
from noether_torch.capture import capture_activations

CONFIG = {"every_n_updates": 2, "keys": ["loss"], "patterns": ["activations/"], "reduce": ["mean", "max", "count"]}


class Network(nn.Module):
    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=inplace), nn.Linear(4, 4))
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x))


def inputs(step: int) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(step))


def by_hand(model: Network, x: Tensor) -> dict[str, Tensor]:
    """Return what the encoder's modules return, computed without hooks."""
    with torch.no_grad():
        first = model.encoder[0](x)
        return {
            "activations/encoder.0": first,
            "activations/encoder.1": first.relu(),
            "activations/encoder.2": model.encoder[2](first.relu()),
        }


def bits(tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name: (value.dtype, value.shape, value.tolist()) for name, value in tensors.items()}


COMPILED = {
    "eager": lambda model: model,
    "compiled": lambda model: torch.compile(model, backend="aot_eager"),
    "whole graph": lambda model: torch.compile(model, backend="aot_eager", fullgraph=True),
}


# torch.compile's own tracing uses what PyTorch deprecates
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", COMPILED)
def test_activations_are_what_the_modules_return(way: str, precision: str, tmp_path: Path) -> None:
    """Train with accumulation, before and after compiling, with and without autocast, and compare with no hooks."""
    torch.compiler.reset()
    model = Network()
    forward = COMPILED[way](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    runs = [Run(tmp_path / name, [CONFIG], accumulation_steps=2) for name in ("hooks", "hand")]
    for run in runs:
        run.start()
    with capture_activations(forward, ["encoder."]) as activations:
        assert activations.names == ("encoder.0", "encoder.1", "encoder.2")
        for step in range(8):
            with autocast:
                expected = by_hand(model, inputs(step))
                loss = forward(inputs(step)).square().mean()
            scaler.scale(loss / 2).backward()
            taken = activations.take()
            assert bits(taken) == bits(expected)
            assert {value.dtype for value in taken.values()} == {getattr(torch, precision)}
            assert not any(value.requires_grad for value in taken.values())
            for run, outputs in zip(runs, (taken, expected), strict=True):
                run.step({"loss": loss, **outputs})
            if step % 2:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        forward(inputs(0))
    forward(inputs(0))
    assert activations.take() == {}
    for run in runs:
        run.finish()
    hooks, hand = (read_run(tmp_path / name).entries for name in ("hooks", "hand"))
    assert hooks == hand
    assert [entry["activations/encoder.1/count/U2"] for entry in hooks] == [4 * 5 * 4] * 2


def test_statistics_are_computed_at_once() -> None:
    model = Network(inplace=True)  # the ReLU overwrites what the layer before it returned
    plain = Network(inplace=False)
    with capture_activations(
        model, ["encoder.0", "encoder.1"], {"low": torch.amin, "zeros": lambda x: (x == 0).sum()}
    ) as activations:
        model(inputs(0))
        taken = activations.take()
    first = plain.encoder[0](inputs(0))
    assert list(taken) == [f"activations/encoder.{at}/{name}" for at in (0, 1) for name in ("low", "zeros")]
    assert taken["activations/encoder.0/low"] == first.amin() < 0
    assert taken["activations/encoder.1/zeros"] == (first <= 0).sum()


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.memory = nn.LSTM(3, 4)
        self.pair = Pair()

    def forward(self, x: Tensor) -> Any:
        return self.pair(self.memory(x)[0])


class Pair(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return {"high": x.amax(), "name": "pair", "none": None}


def test_a_module_with_several_outputs_has_a_key_for_each() -> None:
    model = Several()
    with capture_activations(model, ["memory", "pair"]) as activations:
        model(torch.ones(2, 1, 3))
        shapes = {name: tuple(value.shape) for name, value in activations.take().items()}
    assert shapes == {
        "activations/memory/0": (2, 1, 4),
        "activations/memory/1/0": (1, 1, 4),
        "activations/memory/1/1": (1, 1, 4),
        "activations/pair/high": (),
    }


def test_a_module_that_runs_twice_gives_its_last_run() -> None:
    model = Network()
    with capture_activations(model, ["head"]) as activations:
        model(inputs(0))
        last = model(inputs(1))
        assert torch.equal(activations.take()["activations/head"], last)


def test_nothing_is_kept_alive_and_no_hook_stays() -> None:
    model = Network()
    activations = capture_activations(model, ["encoder", "head"])
    model(inputs(0)).sum().backward()
    taken = [weakref.ref(value) for value in activations.take().values()]
    gc.collect()
    assert taken
    assert not any(reference() is not None for reference in taken)
    model(inputs(0))
    activations.remove()
    activations.remove()
    assert activations.take() == {}
    assert not any(module._forward_hooks for module in model.modules())


def test_the_hooks_go_where_an_error_leaves_the_block() -> None:
    model = Network()
    with pytest.raises(ZeroDivisionError), capture_activations(model, ["head"]):
        raise ZeroDivisionError
    assert not model.head._forward_hooks


def test_names_are_those_before_compiling() -> None:
    model = Network()
    model.encoder = torch.compile(model.encoder, backend="aot_eager")  # type: ignore[assignment]
    with capture_activations(torch.compile(model, backend="aot_eager"), ["encoder", "head"]) as activations:
        assert activations.names == ("encoder", "encoder.0", "encoder.1", "encoder.2", "head")


def test_what_cannot_work_says_so() -> None:
    with pytest.raises(
        NoetherError, match=r"'encodr' is in no module's name; Network has 'encoder', .*Did you mean 'encoder'"
    ):
        capture_activations(Network(), ["head", "encodr"])
    with pytest.raises(NoetherError, match=r"string 'head'; write a list: \['head'\]"):
        capture_activations(Network(), "head")
