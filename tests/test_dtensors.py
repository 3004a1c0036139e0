"""Test that DTensors are counted once over all processes, whatever their placements."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from dtensor_cases import CONFIGS, STEPS, Case, Partial, Replicate, Shard, batches, feed, track, whole
from hook_cases import saved_and_logged, tracker, write_nothing
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._ops._math_ops import _NormPartial
from torch.testing._internal.distributed.fake_pg import FakeStore

import noether_torch
from noether_core import MissingKeyError, NoetherError, OnlineLossCallbackConfig, UpdateCounter, UpdateOutputError
from noether_core.callbacks.record_outputs import OutputRecorder, read_recording
from noether_core.emit.loggable import plain_value
from noether_core.reduce.finish import Computation
from noether_core.reduce.partial import Partials, merge_partials
from noether_core.reduce.state import unpack
from noether_core.select import unstack
from noether_torch.capture import capture_activations
from noether_torch.dtensors import loggable
from noether_torch.state import as_arrays

TESTS = Path(__file__).parent


@contextmanager
def group(rank: int, world: int) -> Iterator[None]:
    """Be one of some processes, of which the others are not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_processes(world: int, script: str, *arguments: str, timeout: int = 120) -> list[str]:
    """Run a script in some processes; return what each printed."""
    processes = [
        subprocess.Popen(
            [sys.executable, TESTS / script, str(rank), str(world), *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=TESTS.parent,
        )
        for rank in range(world)
    ]  # fmt: skip
    try:
        told = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * world, told
    return [output for output, _ in told]


def bits(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: (str(array.dtype), array.shape, array.tobytes()) for name, array in arrays.items()}


def exact_sum(partials: Partials, key: str) -> Fraction:
    at = partials.keys.index(key)
    return sum((Fraction(float(part[at])) for part in partials.statistics.total), Fraction(0))


def check(seed: int, world: int, keys: int, states: list[list[dict[str, Any]]]) -> None:
    """Compare what the processes' states say together with what one process had of the full tensors."""
    cases, steps = batches(seed, world, keys)
    for at, reference in enumerate(whole(seed, world, keys)):
        parts = [unpack(as_arrays(of_process[at])) for of_process in states]
        pooled = reduce(merge_partials, parts)
        wanted = reference.own_partials()
        assert set(pooled.keys) == set(wanted.keys)
        pooled = pooled.in_order(wanted.keys)
        assert pooled.elements.tolist() == wanted.elements.tolist()
        computation = Computation(reference.config)
        found, expected = (computation.compute(each, STEPS).arrays() for each in (pooled, wanted))
        assert bits(found) == bits(expected), [
            (case.placements, case.mesh) for case, name in zip(cases, found, strict=False)
        ]
        for key in steps[0] if at == 0 else ():
            full = np.concatenate([step[key].double().reshape(-1).numpy() for step in steps])
            total = sum(map(Fraction, full[np.isfinite(full)].tolist()), Fraction(0))
            assert exact_sum(pooled, key) == sum(exact_sum(part, key) for part in parts if key in part.keys) == total


@pytest.mark.parametrize("world", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.sweep(2)
def test_each_element_is_counted_once_wherever_it_is(seed: int, world: int) -> None:
    states = []
    for rank in range(world):
        with group(rank, world):
            states.append(track(seed, world, 30, scatter=False))
    check(seed, world, 30, states)


@pytest.mark.parametrize("world", [2, 4])
def test_real_processes_count_each_element_once(world: int, tmp_path: Path, full: bool) -> None:
    seeds = 20 if full else 2
    run_processes(world, "dtensor_cases.py", str(tmp_path), str(seeds), "30")
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for seed in range(seeds):
        check(seed, world, 30, [state[str(seed)] for state in states])


# ---------------------------------------------------------------------- what one of two processes does with a value


def placed(value: Any, *placements: Any, mesh: tuple[int, ...] = (2,)) -> DTensor:
    """Return a DTensor of which this process holds `value`."""
    where = dist.init_device_mesh("cpu", mesh)
    return DTensor.from_local(torch.as_tensor(value), where, placements or [Replicate()], run_check=False)


def tracking(**config: Any) -> Any:
    return tracker(noether_torch, write_nothing(), Path(), every_n_updates=9, **config)


def counted(callback: Any) -> dict[str, list[Any]]:
    """Return the values of the keys of which this process counts some."""
    partials = callback.own_partials()
    here = [key for key, elements in zip(partials.keys, partials.elements, strict=True) if elements]
    return {key: callback.tracked_values[key] for key in here}


PARTIAL = r"'{}' is a DTensor of shape .*Partial.*\.full_tensor\(\).*in every process"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("config", [{}, {"reduce": "last"}, {"weight": "w"}, {"reduce": ["sum", "std"]}])
def test_a_partial_dtensor_is_refused_at_the_first_step(rank: int, config: dict[str, Any]) -> None:
    with group(rank, 2):
        callback = tracking(patterns=["x"], **config)
        for partial in (Partial(), Partial("avg"), Partial("max"), _NormPartial(2)):
            for value in (torch.ones(()), torch.ones(3)):
                with pytest.raises(UpdateOutputError, match=PARTIAL.format("x")):
                    feed([callback], 0, {"x": placed(value, partial), "w": torch.ones(())})
        assert callback.own_partials().keys == ()
        with pytest.raises(UpdateOutputError, match=PARTIAL.format("w")):
            feed([tracking(patterns=["x"], weight="w")], 0, {"x": 1.0, "w": placed(1.0, Partial())})
        feed([callback], 0, {"x": placed(2.0, Replicate(), Partial(), mesh=(2, 1)), "w": torch.ones(())})  # whole here
        assert callback.own_partials().elements.tolist() == [1 - rank]


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("reduction", ["last", "stack"])
def test_whole_values_are_kept_in_one_process_and_never_of_parts(rank: int, reduction: str) -> None:
    with group(rank, 3):
        callback = tracking(keys=["x"], reduce=reduction, log_output=False, save_output=True)
        for shard in (Shard(0), Shard(1)):  # the second is whole in process 0, and nothing in the others
            value = torch.ones(2, int(rank == 0)) if shard == Shard(1) else torch.ones(2, 1)
            spread = DTensor.from_local(value, dist.init_device_mesh("cpu", (3,)), [shard], shape=(2, 1), stride=(1, 1))
            with pytest.raises(UpdateOutputError, match=rf"'x' is .* has a part, and `{reduction}`.*full_tensor\(\)"):
                feed([callback], 0, {"x": spread})
        for step in range(2):
            feed([callback], step, {"x": placed([1.0 + step, rank], mesh=(3,))})
        found = next(iter(callback.tracked_values["x"]), None)
        kept = None if rank else [2.0, 0.0] if reduction == "last" else [[1.0, 0.0], [2.0, 0.0]]
        assert (found if found is None else found.tolist()) == kept


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_what_is_spread_is_not_what_every_process_has_alike(rank: int) -> None:
    with group(rank, 3):
        mesh = dist.init_device_mesh("cpu", (3,))
        callback = tracking(keys=["grad"], patterns=["norm"], replicated=["gr", "norm"])
        for key in ("grad", "norm"):
            parts = {"grad": placed(1.0, mesh=(3,)), key: DTensor.from_local(torch.ones(2), mesh, [Shard(0)])}
            with pytest.raises(UpdateOutputError, match=rf"'{key}' is .* `replicated` \('gr', 'norm'\).*take it out"):
                feed([callback], 0, parts)
        feed([callback], 0, {"grad": placed(1.0, mesh=(3,)), "norm": 2.0})
        assert counted(callback) == ({"norm": [2.0]} if rank else {"grad": [1.0], "norm": [2.0]})


def test_a_key_that_another_process_counts_is_there() -> None:
    with group(1, 2):
        callback = tracking(keys=["loss"], patterns=["x", "no"])
        feed([callback], 0, {"loss": placed(1.0), "x/a": placed(1.0), "x/b": 3.0})
        callback.undo_accumulation_step()
        feed([callback], 0, {"loss": placed(1.0), "x/a": placed(1.0), "x/b": 2.0})
        assert callback.own_partials().keys == ("loss", "x/a", "x/b")  # as in the process that counts them
        assert counted(callback) == {"x/b": [2.0]}
        assert callback._matches.unmatched() == ["no"]
        alone = tracking(keys=["loss"])
        feed([alone], 0, {"loss": placed(1.0)})
        assert alone.has_values
        assert counted(alone) == {}
        other = tracking(keys=["loss"])
        other.load_state_dict(alone.state_dict())
        with pytest.raises(MissingKeyError):
            feed([alone], 1, {"x": 1.0})


def test_losses_of_which_each_process_has_a_copy_are_counted_once() -> None:
    for rank in range(2):
        with group(rank, 2):
            callback = noether_torch.OnlineLossCallback(
                OnlineLossCallbackConfig(every_n_updates=9), log_writer=write_nothing()
            )
            for step, losses in enumerate([placed(3.0), {"a": placed(3.0), "b": torch.tensor(1.0)}]):
                callback.track_after_accumulation_step(
                    update_counter=UpdateCounter(), losses=losses, accumulation_steps=2, accumulation_step=step
                )
                assert callback.tracking.has_values
            found = counted(callback.tracking)
            own = {"loss/online/b": [1.0]}
            assert found == (own if rank else {"loss/online/total": [3.0], "loss/online/a": [3.0], **own})


@pytest.mark.parametrize("rank", [0, 1])
def test_weights_go_with_values_that_are_spread_as_they_are(rank: int) -> None:
    with group(rank, 2):
        value, copy = placed([1.0 + rank, 2.0], Shard(0)), placed([1.0, 2.0])

        def given(x: Any, w: Any) -> Any:
            callback = tracking(keys=["x", "w"], weight="w", reduce="sum")
            feed([callback], 0, {"x": x, "w": w})
            partials = callback.own_partials()
            return {key: float(sum(part[at] for part in partials.statistics.weighted if partials.weighted[at]))
                    for at, key in enumerate(partials.keys) if partials.elements[at]}  # fmt: skip

        assert given(value, placed([2.0, 3.0], Shard(0))) == {"x": 8.0 + 2 * rank, "w": 0.0}
        assert given(value, placed([2.0])) == ({"x": 6.0 + 2 * rank} | ({} if rank else {"w": 0.0}))
        assert given(value, 2.0) == {"x": 6.0 + 2 * rank, "w": 0.0}
        assert given(5.0, placed(2)) == ({"x": 10.0} | ({} if rank else {"w": 0.0}))
        assert given(copy, copy) == ({} if rank else {"x": 5.0, "w": 0.0})
        assert given(copy, torch.tensor([1.0, 3.0])) == {**({} if rank else {"x": 7.0}), "w": 0.0}
        for x, w in [
            (value, copy), (value, placed([1.0, 1.0, 1.0, 1.0])), (value, torch.ones(2)), (copy, value),
            (torch.ones(2), value), (3.0, placed([1.0] * (1 - rank), Shard(0))),
        ]:  # fmt: skip
            with pytest.raises(
                UpdateOutputError, match=r"'x' is .*its weight 'w' is .*expected a weight of one element"
            ):
                given(x, w)


def test_a_value_on_other_processes_is_not_counted_and_not_missing() -> None:
    for rank in range(4):
        with group(rank, 4):
            mesh = DeviceMesh("cpu", [2, 3])
            part = torch.tensor([1.0, 2.0]) if rank > 1 else torch.tensor([])
            copies, parts = (
                DTensor.from_local(part, mesh, [each], shape=(size,), stride=(1,), run_check=False)
                for each, size in ((Replicate(), 2), (Shard(0), 4))
            )
            callback = tracking(keys=["copies", "parts"], reduce="sum")
            feed([callback], 0, {"copies": copies, "parts": parts})
            assert counted(callback) == [{}, {}, {"copies": [3.0], "parts": [3.0]}, {"parts": [3.0]}][rank]
            with pytest.raises(UpdateOutputError, match=r"'parts' is .*`last`"):
                feed([tracking(keys=["parts"], reduce="last")], 0, {"parts": parts})
            if rank < 2:
                with pytest.raises(UpdateOutputError, match=r"is not in this process.*full_tensor"):
                    feed([tracking(keys=["x"], weight="w")], 0, {"x": 1.0, "w": copies[:1]})


def test_a_tensor_that_a_collective_fills_is_waited_for() -> None:
    with group(1, 2):
        callback = tracking(patterns=["x"], reduce="sum")
        awaited = AsyncCollectiveTensor(torch.tensor([1.0, 2.0]))
        feed(
            [callback],
            0,
            {"x": awaited, "x/d": DTensor.from_local(awaited, dist.init_device_mesh("cpu", (2,)), [Shard(0)])},
        )
        assert callback.tracked_values == {"x": [3.0], "x/d": [3.0]}


def test_steps_are_not_taken_apart_along_an_axis_that_is_spread() -> None:
    with group(0, 2):
        spread, across = (placed(torch.arange(4.0).reshape(2, 2), Shard(dim)) for dim in (0, 1))
        assert [step["x"].to_local().tolist() for step in unstack({"x": across}, 2)] == [[0.0, 1.0], [2.0, 3.0]]
        with pytest.raises(UpdateOutputError, match=r"'x' is DTensor, which cannot be taken apart.*one by one"):
            unstack({"x": spread}, 4)


def test_only_a_number_that_each_process_has_whole_is_logged() -> None:
    with group(1, 2):
        shard, partial = placed([1.0], Shard(0)), placed(1.0, Partial())
        assert plain_value("x", loggable("x", placed(3))) == 3
        assert plain_value("x", loggable("x", AsyncCollectiveTensor(torch.tensor(2.5)))) == 2.5
        assert loggable("x", "text") == "text"
        for value, message in ((shard, r"it is a DTensor of shape \(2,\)"), (partial, "Partial")):
            with pytest.raises(NoetherError, match=rf"cannot log 'x': .*{message}.*\.full_tensor\(\)"):
                plain_value("x", loggable("x", value))


def test_a_recording_has_what_a_process_counts(tmp_path: Path) -> None:
    for rank in range(2):
        with group(rank, 2):
            path = tmp_path / f"{rank}.safetensors"
            recorder = OutputRecorder(path, backend=noether_torch.Run.backend, log_writer=write_nothing())
            outputs = {"copy": placed(1.0), "part": placed([1.0, 2.0 + rank], Shard(0)), "own": rank}
            recorder.track_after_accumulation_step(update_counter=UpdateCounter(), update_outputs=outputs)
            with pytest.raises(UpdateOutputError, match=r"Partial.*full_tensor.*A recording holds"):
                recorder.track_after_accumulation_step(
                    update_counter=UpdateCounter(), update_outputs={"x": placed(1.0, Partial())}
                )
            recorder.after_training(update_counter=UpdateCounter())
            (step,) = read_recording(path)
            assert {key: np.asarray(value).tolist() for key, value in step.items()} == (
                {"copy": 1.0, "part": [1.0, 2.0], "own": 0} if rank == 0 else {"part": [1.0, 3.0], "own": 1}
            )


def test_captured_activations_may_be_dtensors() -> None:
    with group(1, 2):
        model, statistics = torch.nn.Identity(), {"mean": torch.mean, "whole": lambda x: x.mean().full_tensor()}
        with capture_activations(torch.nn.Sequential(model), ["0"]) as activations:
            model(placed([1.0, 2.0], Shard(0)))
            callback = tracking(patterns=["activations"], reduce="sum")
            feed([callback], 0, activations.take())
            assert callback.tracked_values == {"activations/0": [3.0]}
        with capture_activations(torch.nn.Sequential(model), ["0"], statistics) as activations:
            model(placed([1.0, 2.0], Shard(0)))
            taken = activations.take()
            with pytest.raises(UpdateOutputError, match=PARTIAL.format("activations/0/mean")):
                feed([tracking(patterns=["mean"])], 0, taken)
            feed([tracking(patterns=["whole"])], 0, taken)


# ---------------------------------------------------------------------- a process of its own


@pytest.fixture
def lone() -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.init_device_mesh("cpu", (1, 1), mesh_dim_names=("a", "b"))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("compiled", [False, True])
def test_a_lone_process_tracks_dtensors_as_plain_tensors(lone: DeviceMesh, compiled: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    cases = [Case(rng, 1) for _ in range(40)]
    configs = [{**config, "every_n_updates": 2 + at} for at, config in enumerate(CONFIGS)]
    configs += [{"every_n_updates": 1, "patterns": ["k"], "reduce": ["last", "stack"], "log_output": False,
                 "save_output": True, "id": "kept"}]  # fmt: skip
    steps = [{f"k{at}": case.full(rng) for at, case in enumerate(cases)} for _ in range(6)]
    paths = [tmp_path / name for name in ("plain", "spread")]
    for path in paths:
        with noether_torch.Run(path, configs, record=path / "recorded.safetensors") as run:
            step = torch.compile(lambda outputs: run.step(outputs), backend="eager") if compiled else run.step
            for full in steps:
                given: dict[str, Any] = {**full, "one": torch.tensor(2.0), "copied": torch.ones(1)}
                if path == paths[1]:
                    places = [each.placements for each in cases] + [[Replicate()], [Partial()]]
                    given = {
                        key: DTensor.from_local(value, lone if len(place) == 2 else lone["b"], place, run_check=False)
                        for (key, value), place in zip(given.items(), places, strict=True)
                    }
                step(given)
                run.log({f"own/{run.counter.update}": given["one"]})
            with run.evaluate():
                run.step(given)
    assert saved_and_logged(paths[:1]) == saved_and_logged(paths[1:])
