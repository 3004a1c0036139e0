"""Feed one training's update outputs through every way in: what each leaves may differ in no byte.

The outputs are those of the digits workload, recorded in the PyTorch training.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from flax import nnx

import noether_jax
import noether_jax.flax
from examples.digits import data, train_torch
from noether_core import load_callbacks, read_run
from noether_core.parity import differing_files, read_recording
from noether_core.scalars import is_scalar
from parity_tests import ways_in
from parity_tests.ways_in import BATCHES, CALLBACKS, EPOCHS, WAYS, Recorded

pytestmark = [
    # Lightning advises more workers, a longer log interval; it asks PyTorch for the LeafSpec check under its old name
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorded]:
    """Return the run of a plain loop, and the update outputs of each of its accumulation steps."""
    root = tmp_path_factory.mktemp("trained")
    train_torch.train(root / "run", epochs=EPOCHS, record=root / "outputs.safetensors")
    recorded = [outputs for outputs in read_recording(root / "outputs.safetensors") if outputs]
    assert len(recorded) == EPOCHS * BATCHES
    return root / "run", recorded


@pytest.mark.parametrize("way", WAYS)
def test_a_way_in_leaves_what_the_plain_loop_left(way: str, trained: tuple[Path, Recorded], tmp_path: Path) -> None:
    plain, recorded = trained
    WAYS[way](recorded, tmp_path / "run")
    assert differing_files(plain, tmp_path / "run") == ([], 1 + EPOCHS)
    series = read_run(tmp_path / "run").series
    assert len(series) == 13
    assert [point.update for point in series["loss/U10"]] == [10, 20, 30, 40, 44]


@pytest.mark.parametrize("way", WAYS)
def test_every_scalar_has_the_same_names_and_numbers_in_every_way(
    way: str, trained: tuple[Path, Recorded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"every_n_updates": 10, "scalars": True, "reduce": ["mean", "max"], "log_as": "train/{key} ({reduction})"}
    monkeypatch.setattr(ways_in, "CALLBACKS", [config])
    _, recorded = trained
    WAYS["torch loop"](recorded, tmp_path / "plain")
    WAYS[way](recorded, tmp_path / "run")
    assert differing_files(tmp_path / "plain", tmp_path / "run") == ([], 1)
    names = [f"train/{key} ({each})" for key in recorded[0] if is_scalar(recorded[0][key]) for each in ("mean", "max")]
    assert 0 < len(names) < 2 * len(recorded[0])
    assert list(read_run(tmp_path / "run").entries[0])[3:] == names


def test_a_metric_has_the_numbers_of_the_plain_loop(trained: tuple[Path, Recorded]) -> None:
    """The metric logs nothing, so it is reset where the plain loop's log says that an interval ended."""
    plain, recorded = trained
    run = read_run(plain)
    saved = {file.iteration.update: file.load() for file in run.arrays}
    compared = 0
    for config in load_callbacks(CALLBACKS):
        if not isinstance(config, noether_jax.TrackAdditionalOutputsCallbackConfig):  # probes are none of its business
            continue
        metric = noether_jax.flax.TrackOutputs(config, recorded[0])
        merge = nnx.jit(lambda metric, outputs: metric.update(**outputs))
        places = {key: points for key, points in run.series.items() if key.endswith(f"/{config.interval}")}
        ends = {point.update for points in places.values() for point in points}
        for step, outputs in enumerate(recorded, start=1):
            merge(metric, outputs)
            update, is_midway = divmod(step, data.ACCUMULATION_STEPS)
            if is_midway or update not in ends:
                continue
            for key, value in metric.compute().items():
                if config.log_output:
                    logged = {point.update: point.value for point in places[config.log_key(key, "mean")]}
                    assert value.item() == logged[update]
                else:
                    assert value.tobytes() == saved[update][key].tobytes()
                compared += 1
            metric.reset()
    assert compared == sum(len(points) for points in run.series.values()) + EPOCHS
