"""`TrackOutputs` among NNX's metrics, against what a run logs of the same outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from noether_core import MissingKeyError, NoetherError, UpdateOutputError, read_run
from noether_jax import OnlineLossCallbackConfig, Run
from noether_jax.flax import TrackOutputs

CONFIG = {
    "every_n_updates": 3,
    "keys": ["loss"],
    "patterns": ["grad/"],
    "reduce": ["mean", "last", "std", "max", "count"],
}


def outputs(step: int) -> dict[str, Any]:
    logits = jax.random.normal(jax.random.key(step), (6, 4))
    labels = jnp.arange(6) % 4
    return {"loss": logits.std(), "grad": {"norm": logits.sum(), "skew": None}, "logits": logits, "labels": labels}


def by_run(path: Path, config: dict[str, Any], steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a run logs at each interval's end, under the names that `compute` has."""
    with Run(path, [config]) as run:
        for step in steps:
            run.step(step)
    end = f"/U{config['every_n_updates']}"
    return [
        {key.removesuffix(end): value for key, value in entry.items() if key.endswith(end)}
        for entry in read_run(path).entries
    ]


def plain(computed: dict[str, np.ndarray[Any, Any]]) -> dict[str, float | int]:
    return {key: value.item() for key, value in computed.items()}


def metrics_with_others() -> nnx.MultiMetric:
    return nnx.MultiMetric(tracked=TrackOutputs(CONFIG, outputs(0)), accuracy=nnx.metrics.Accuracy())


WAYS: dict[str, dict[str, Any]] = {
    "graph mode": {"graph": True},
    "tree mode": {"graph": False},
    "no graph updates": {"graph_updates": False},
    "donated": {"donate_argnums": 0},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_metric_gives_the_numbers_of_a_run(way: str, tmp_path: Path) -> None:
    metrics, traces = metrics_with_others(), []

    @nnx.jit(**WAYS[way])
    def step(metrics: nnx.MultiMetric, given: dict[str, Any]) -> None:
        traces.append(None)
        metrics.update(**given)

    steps, found = [outputs(number) for number in range(9)], []
    for number, given in enumerate(steps, start=1):
        step(metrics, given)
        if number % 3 == 0:
            computed = metrics.compute()
            assert 0 <= float(computed["accuracy"]) <= 1
            found.append(plain(computed["tracked"]))
            metrics.reset()
            assert metrics.compute()["tracked"] == {}
    assert found == by_run(tmp_path, CONFIG, steps)
    assert set(found[0]) == {f"{key}/{name}" for key in ("loss", "grad/norm") for name in CONFIG["reduce"]}
    assert len(traces) == 1


def test_it_is_reset_inside_of_a_compiled_function_too(tmp_path: Path) -> None:
    metric, steps = TrackOutputs(CONFIG, outputs(0)), [outputs(number) for number in range(3)]
    metric.update(**outputs(7))

    @nnx.jit
    def train(metric: TrackOutputs, steps: list[dict[str, Any]]) -> None:
        metric.reset()
        for given in steps:
            metric.update(**given)

    train(metric, steps)
    assert [plain(metric.compute())] == by_run(tmp_path, CONFIG, steps)


def test_its_state_is_split_copied_and_merged_in_mid_interval(tmp_path: Path) -> None:
    metrics, steps = metrics_with_others(), [outputs(number) for number in range(3)]
    metrics.update(**steps[0])
    definition, state = nnx.split(metrics)
    saved = jax.tree.map(np.asarray, state)  # on the host, as a checkpoint
    loaded = jax.tree.map(jnp.asarray, saved)
    metrics.update(**outputs(7))
    again = nnx.merge(definition, loaded)
    other = metrics_with_others()
    nnx.update(other, loaded)
    for restored in (again, other):
        for given in steps[1:]:
            restored.update(**given)
    wanted = by_run(tmp_path, CONFIG, steps)
    assert [plain(each.compute()["tracked"]) for each in (again, other)] == wanted * 2


def test_the_mask_of_a_multi_metric_may_be_the_weight(tmp_path: Path) -> None:
    config = {"every_n_updates": 2, "keys": ["logits"], "weight": "mask"}
    masks = [jax.random.bernoulli(jax.random.key(number), 0.5, (6, 4)) for number in range(2)]
    steps = [{"logits": outputs(number)["logits"], "mask": mask} for number, mask in enumerate(masks)]
    metrics = nnx.MultiMetric(tracked=TrackOutputs(config, steps[0]))
    for given in steps:
        metrics.update(**given)
    assert [plain(metrics.compute()["tracked"])] == by_run(tmp_path, config, steps)


def test_its_values_reach_the_log_by_either_way(tmp_path: Path) -> None:
    """Evaluate at each fourth update: one way logs what the metric gives, the other hands it to the run."""
    metric = TrackOutputs(CONFIG, jax.eval_shape(outputs, 0))
    config = {"every_n_updates": 4, "patterns": ["test/"], "reduce": "last", "missing": "skip"}
    computed = []
    with Run(tmp_path, [config]) as run:
        for number in range(1, 9):
            train_outputs: dict[str, Any] = {}
            if number % 4 == 0:
                for step in range(3):
                    metric.update(**outputs(number + step))
                computed.append(metric.compute())
                train_outputs["test"] = computed[-1]
                metric.reset()
            run.step(train_outputs)
            if number % 4 == 0:
                for key, value in computed[-1].items():
                    run.log_writer.add_scalar(f"evaluated/{key}", value)
    entries = read_run(tmp_path).entries
    assert [entry["update"] for entry in entries] == [4, 8]
    for entry, values in zip(entries, map(plain, computed), strict=True):
        assert {key: entry[f"test/{key}/U4"] for key in values} == values
        assert {key: entry[f"evaluated/{key}"] for key in values} == values


def test_what_cannot_work_says_so() -> None:
    metric = TrackOutputs(CONFIG, outputs(0))
    with pytest.raises(NoetherError, match=r"compute was called while JAX traced.*update inside of nnx.jit.*outside"):
        nnx.jit(lambda metric: metric.compute())(metric)
    with pytest.raises(UpdateOutputError, match=r"'loss' is float32 of shape \(2,\), and was float32 of shape \(\)"):
        metric.update(loss=jnp.ones(2))
    with pytest.raises(UpdateOutputError, match=r"'grad/max' was not in the example"):
        metric.update(loss=jnp.ones(()), grad={"max": jnp.ones(())})
    with pytest.raises(MissingKeyError, match=r"'loss' is not among"):
        metric.update(los=jnp.ones(()))
    assert metric.compute() == {}
    with pytest.raises(NoetherError, match=r"stack, which keeps every value"):
        TrackOutputs({**CONFIG, "reduce": "stack", "save_output": True}, outputs(0))
    with pytest.raises(NoetherError, match=r"got a OnlineLossCallbackConfig to track outputs by; expected a Track"):
        TrackOutputs(OnlineLossCallbackConfig(every_n_updates=1), outputs(0))  # type: ignore[arg-type]
