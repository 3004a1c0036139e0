"""Gradients are read when a backward pass is done, whatever the loop does: as that pass left them, and before they change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noether_torch
from noether_core.probes import RecordedTraining, read_training, statistics_of

STATISTICS = [{"kind": "ProbeCallback", "every_n_updates": 1, "arrays": 0}]
ARRAYS = [{"kind": "ProbeCallback", "every_n_updates": 1}]


class Pair(nn.Module):
    """Have two layers, of which either runs alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).square().sum() + self.b(x).square().sum()


def inputs(number: int) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(number))


def grads_of(model: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: each.grad.numpy().copy() for name, each in model.named_parameters() if each.grad is not None}


def check(training: RecordedTraining, stage: str, wanted: Mapping[str, np.ndarray[Any, Any]], update: int = 1) -> None:
    assert [key for key in training.keys(update) if key.startswith(f"{stage}/")] == [f"{stage}/{n}" for n in wanted]
    for name, array in wanted.items():
        assert training.statistics(update, f"{stage}/{name}") == statistics_of(array), name
        kept = training.array(update, f"{stage}/{name}")
        if kept is not None:
            np.testing.assert_array_equal(kept, array)


def several_passes(model: Pair, optimizer: Any) -> Any:
    for number in range(3):
        model(inputs(number)).backward()
    return grads_of(model), None


def a_pass_for_each_part(model: Pair, optimizer: Any) -> Any:
    x = inputs(0)
    model.b(x).sum().backward()
    model.a(x).sum().backward()
    return grads_of(model), None


def a_part_alone(model: Pair, optimizer: Any) -> Any:
    model.b(inputs(0)).sum().backward()
    return grads_of(model), None


def a_pass_that_fails_first(model: Pair, optimizer: Any) -> Any:
    def fail(grad: Tensor) -> None:
        raise ZeroDivisionError

    x = inputs(0)
    handle = model.a.weight.register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        model(x).backward()
    handle.remove()
    optimizer.zero_grad()
    model(inputs(1)).backward()
    return grads_of(model), None


def a_pass_that_is_thrown_away(model: Pair, optimizer: Any) -> Any:
    model(inputs(0)).backward()
    optimizer.zero_grad()
    model.a(inputs(1)).sum().backward()
    return grads_of(model), None


def clipped(model: Pair, optimizer: Any) -> Any:
    model(inputs(0)).backward()
    before = grads_of(model)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    return before, grads_of(model)


def replaced(model: Pair, optimizer: Any) -> Any:
    model(inputs(0)).backward()
    before = grads_of(model)
    model.b.bias.grad = torch.ones(2)
    return before, grads_of(model)


def zeroed_in_place(model: Pair, optimizer: Any) -> Any:
    model(inputs(0)).backward()
    before = grads_of(model)
    optimizer.zero_grad(set_to_none=False)
    return before, grads_of(model)


def unscaled_and_clipped(model: Pair, optimizer: Any) -> Any:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(model(inputs(0))).backward()
    before = grads_of(model)
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    return before, grads_of(model)


def given_by_hand(model: Pair, optimizer: Any) -> Any:
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    return grads_of(model), None


def changed_by_a_hook(model: Pair, optimizer: Any) -> Any:
    handle = model.a.weight.register_hook(lambda grad: 3 * grad)
    model(inputs(0)).backward()
    handle.remove()
    return grads_of(model), None


def with_a_pass_inside_of_it(model: Pair, optimizer: Any) -> Any:
    x = inputs(0).requires_grad_()
    inner = torch.utils.checkpoint.checkpoint(model.a, x, use_reentrant=True)
    (inner.square().sum() + model.b(x).sum()).backward()
    return grads_of(model), None


def of_a_penalty(model: Pair, optimizer: Any) -> Any:
    x = inputs(0).requires_grad_()
    loss = model(x)
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (loss + slope.square().sum()).backward()
    return grads_of(model), None


WAYS: list[Callable[[Pair, Any], Any]] = [
    several_passes,
    a_pass_for_each_part,
    a_part_alone,
    a_pass_that_fails_first,
    a_pass_that_is_thrown_away,
    clipped,
    replaced,
    zeroed_in_place,
    unscaled_and_clipped,
    given_by_hand,
    changed_by_a_hook,
    with_a_pass_inside_of_it,
    of_a_penalty,
]


@pytest.mark.parametrize("config", [STATISTICS, ARRAYS], ids=["statistics", "arrays"])
@pytest.mark.parametrize("names", [None, dict], ids=["own names", "given names"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_gradients_are_those_that_the_loop_sees(way: Any, names: Any, config: Any, tmp_path: Path) -> None:
    model = Pair()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    wanted = []
    with noether_torch.Run(tmp_path, config) as run:
        run.probe(model, optimizer, names=names)
        for _ in range(2):
            optimizer.zero_grad()
            wanted.append(way(model, optimizer))
            optimizer.step()
            for parameter in model.parameters():  # what is kept is none of the memory that the loop goes on to use
                if parameter.grad is not None:
                    parameter.grad.fill_(9.0)
            run.step({})
    training = read_training(tmp_path)
    for update, (before, after) in enumerate(wanted, 1):
        check(training, "grad", before, update)
        check(training, "clip", after or {}, update)


def test_names_may_make_one_array_of_gradients_of_several_passes(tmp_path: Path) -> None:
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def stacked(arrays: Mapping[str, Any]) -> dict[str, Any]:
        return {"w": torch.stack([arrays["a.weight"], arrays["b.weight"]])} if arrays else {}

    with noether_torch.Run(tmp_path, STATISTICS) as run:
        run.probe(model, optimizer, names=stacked)
        grads, _ = a_pass_for_each_part(model, optimizer)
        optimizer.step()
        run.step({})
    check(read_training(tmp_path), "grad", {"w": np.stack([grads["a.weight"], grads["b.weight"]])})


@pytest.mark.parametrize("is_last_first", [False, True])
def test_each_of_several_optimizers_has_its_own_gradients(is_last_first: bool, tmp_path: Path) -> None:
    model = Pair()
    parts = [torch.optim.SGD(part.parameters(), lr=0.1) for part in (model.a, model.b)]
    with noether_torch.Run(tmp_path, STATISTICS) as run:
        run.probe(model, parts)
        for _ in range(2):
            for each in parts:
                each.zero_grad()
            model(inputs(0)).backward()
            grads = grads_of(model)
            for each in reversed(parts) if is_last_first else parts:
                each.step()
            run.step({})
    training = read_training(tmp_path)
    for name, array in grads.items():
        assert training.statistics(2, f"grad/{name}") == statistics_of(array)
    assert not any(key.startswith("clip/") for update in (1, 2) for key in training.keys(update))


@pytest.mark.parametrize("is_before", [True, False], ids=["before ours", "after ours"])
@pytest.mark.parametrize("to_none", [True, False])
def test_steps_within_the_backward_pass_have_their_gradients(is_before: bool, to_none: bool, tmp_path: Path) -> None:
    model = Pair()
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in model.parameters()}
    grads: list[dict[str, np.ndarray[Any, Any]]] = []
    names = {parameter: name for name, parameter in model.named_parameters()}

    def step(parameter: Tensor) -> None:
        assert parameter.grad is not None
        grads[-1][names[parameter]] = parameter.grad.numpy().copy()
        optimizers[parameter].step()
        optimizers[parameter].zero_grad(set_to_none=to_none)

    def put() -> None:
        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)

    if is_before:
        put()
    with noether_torch.Run(tmp_path, STATISTICS) as run:
        run.probe(model, list(optimizers.values()))
        if not is_before:
            put()
        for number in range(3):
            grads.append({})
            model(inputs(number)).backward()
            run.step({})
    training = read_training(tmp_path)
    for update, wanted in enumerate(grads, 1):
        assert not any(key.startswith("clip/") for key in training.keys(update))
        for name, array in wanted.items():
            assert training.statistics(update, f"grad/{name}") == statistics_of(array), (update, name)
            assert training.statistics(update, f"update/{name}") is not None


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch's, of its own tensors
def test_a_backward_pass_that_is_compiled_is_read_too(tmp_path: Path) -> None:
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    compiled = torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager"))
    with noether_torch.Run(tmp_path, STATISTICS) as run:
        run.probe(model, optimizer)
        loss = model(inputs(0))
        with compiled:
            loss.backward()
        grads = grads_of(model)
        optimizer.step()
        run.step({})
    check(read_training(tmp_path), "grad", grads)


@pytest.mark.parametrize("names", [None, dict], ids=["own names", "given names"])
def test_gradients_are_copied_only_where_names_are_given(names: Any, tmp_path: Path) -> None:
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with noether_torch.Run(tmp_path, STATISTICS) as run:
        run.probe(model, optimizer, names=names)
        loss = model(inputs(0))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            loss.backward()
        optimizer.step()
        run.step({})
    done = {event.name for event in profile.events()}
    assert ("aten::clone" in done) == (names is not None)
    assert len(read_training(tmp_path).keys(1)) > 8
