"""Check that a pooled maximum or an error that rounding moves is no difference of gradients, and a larger one is."""

from __future__ import annotations

import numpy as np
import pytest

from noether_core.parity.divergence import MemoryTraining, compare

WINDOWS = 4 * 2 * 4 * 4


def pooled(flips: int, apart: float, key: str, recorded: bool) -> tuple[MemoryTraining, MemoryTraining]:
    """Return two trainings of images that are pooled; in some windows the largest element stands at another place."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(4, 2, 8, 8)).astype(np.float32)
    images[0, 0, 0 : 2 * flips : 2, 0:2] = 4.0
    turned = images.copy()
    images[0, 0, 0 : 2 * flips : 2, 0] = np.nextafter(np.float32(4), np.float32(5))
    turned[0, 0, 0 : 2 * flips : 2, 1] = np.nextafter(np.float32(4), np.float32(5))
    grads = {name: generator.normal(size=(6, 6)).astype(np.float32) for name in ("conv.weight", "head.weight")}
    found = []
    for name, acts in (("a", images), ("b", turned)):
        windows = acts.reshape(4, 2, 4, 2, 4, 2).max((3, 5))
        arrays = {
            "param/conv.weight": grads["conv.weight"],
            "param/head.weight": grads["head.weight"],
            "act/conv": acts,
        }
        arrays |= {"act/pool": windows} if recorded else {}
        arrays |= {"act/head": windows.reshape(4, -1)[:, :6], "loss/total": np.float32(1)}
        arrays |= {
            f"grad/{each}": grad * np.float32(1 + apart * (name == "b" and each == key)) for each, grad in grads.items()
        }
        found.append(MemoryTraining(name, "", {1: arrays}))
    return found[0], found[1]


@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "a function"])
def test_gradients_before_a_maximum_that_moved_may_differ_by_what_it_moves(recorded: bool) -> None:
    apart = 1 / np.sqrt(WINDOWS) / 4
    assert compare(*pooled(1, apart, "conv.weight", recorded)).outcome == "same"
    for flips, gap, key in ((0, apart, "conv.weight"), (1, 10 * apart, "conv.weight"), (1, apart, "head.weight")):
        found = compare(*pooled(flips, gap, key, recorded)).first
        assert found is not None
        assert found.key == f"grad/{key}"


def test_an_absolute_error_that_changes_its_sign_by_rounding_is_a_kink() -> None:
    generator = np.random.default_rng(1)
    target, grad = generator.normal(size=(16, 4)).astype(np.float32), generator.normal(size=(4, 4)).astype(np.float32)
    output = target + generator.normal(size=(16, 4)).astype(np.float32)
    trainings = []
    for step in (np.float32(-np.inf), np.float32(np.inf)):
        output[3, 2] = np.nextafter(target[3, 2], step)
        arrays = {"data/y": target, "param/head.weight": grad, "act/head": output.copy()}
        arrays["grad/head.weight"] = grad * np.float32(1 + 0.1 * (step > 0))
        trainings.append(MemoryTraining("", "", {1: arrays}))
    assert compare(*trainings).outcome == "same"
