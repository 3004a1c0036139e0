"""Check what of twins is taken for noise: rounding, not random numbers of their own."""

from __future__ import annotations

import numpy as np
import pytest

from noether_core.parity.divergence import MemoryTraining, Noise, compare

ROWS, WIDTH, UPDATES = 24, 16, 3


def training(
    nudge: float = 0.0, mask: int | None = None, since: int = 1, rows: int = ROWS, label: str = "a"
) -> MemoryTraining:
    """Compute a layer and its loss; of some rows a tenth is dropped, from an update on, by a seed."""
    weight = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32)
    weight = weight * np.float32(1 + nudge)
    arrays = {}
    for update in range(1, UPDATES + 1):
        x = np.random.default_rng([1, update]).normal(size=(ROWS, WIDTH)).astype(np.float32)
        hidden = x @ weight
        out = hidden.copy()
        if mask is not None and update >= since:
            kept = np.random.default_rng([mask, update]).random(out.shape) > 0.1
            out[:rows] = np.where(kept, out / np.float32(0.9), 0)[:rows]
        loss = np.float32((out**2).mean())
        arrays[update] = {
            "data/x": x,
            "param/layer.weight": weight,
            "act/layer": hidden,
            "act/drop": out,
            "loss/total": loss,
        }
    return MemoryTraining(label, "torch", arrays)


def test_a_twin_with_other_random_numbers_is_no_noise_and_is_told_of() -> None:
    base, near, other = training(mask=3), training(6e-8, mask=3), training(6e-8, mask=4)
    noise = Noise.of_twins(base, [near, other])
    assert noise.twins == 1
    assert [(each.update, each.key) for each in noise.partings] == [(1, "act/drop")]
    assert noise.at("act/drop", np.array([1]))[0] < 1e-6
    found = compare(training(label="b"), base, noise)
    assert found.first is not None
    assert (found.first.update, found.first.key) == (1, "act/drop")
    assert any("random" in each and "act/drop" in each for each in found.warnings)


def test_a_twin_is_noise_until_it_becomes_random() -> None:
    base, other = training(mask=3, since=2), training(6e-8, mask=4, since=2)
    noise = Noise.of_twins(base, [other])
    assert noise.twins == 1
    assert noise.partings[0].update == 2
    assert noise.of_twins_at("act/drop", np.array([1, 3])).max() < 1e-6
    assert compare(training(mask=3, since=2), training(mask=5, since=2, label="b"), noise).outcome == "differs"


@pytest.mark.parametrize("rows", [1, 2])
def test_a_choice_that_rounding_turns_in_few_rows_is_noise(rows: int) -> None:
    base, other = training(mask=3, rows=rows), training(6e-8, mask=4, rows=rows)
    other.arrays = {n: {**keys, "loss/total": base.arrays[n]["loss/total"]} for n, keys in other.arrays.items()}
    noise = Noise.of_twins(base, [other])
    assert (noise.twins, noise.partings) == (1, ())
    assert noise.at("act/drop", np.array([1]))[0] > 1e-2


def test_a_loss_alone_tells_a_random_twin() -> None:
    base, other = training(mask=3), training(6e-8, mask=4)
    for each in (base, other):
        each.arrays = {
            n: {key: v for key, v in keys.items() if not key.startswith("act/")} for n, keys in each.arrays.items()
        }
    assert [each.key for each in Noise.of_twins(base, [other]).partings] == ["loss/total"]
