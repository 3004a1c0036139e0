"""What `compare` answers: the order of what differs, the sentences, statistics alone, and wrong uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from noether_core.parity.divergence import FLOORS, STAGES, MemoryTraining, Noise, Statistics, compare

KEYS = (
    "data/x",
    "param/a.weight",
    "param/b.weight",
    "act/a",
    "act/b",
    "loss/total",
    "grad/a.weight",
    "grad/b.weight",
    "clip/a.weight",
    "clip/b.weight",
    "update/a.weight",
    "update/b.weight",
    "opt/mu/a.weight",
    "opt/norm.running_mean",
)


def training(
    label: str = "a", updates: Sequence[int] = range(1, 6), keys: Sequence[str] = KEYS, seed: int = 0
) -> MemoryTraining:
    return MemoryTraining(
        label,
        "torch" if label == "a" else "jax",
        {
            update: {
                key: np.random.default_rng([seed, update, place]).standard_normal((40, 3)).astype(np.float32)
                for place, key in enumerate(keys)
            }
            for update in updates
        },
    )


def twin(update: int, key: str, factor: float) -> MemoryTraining:
    """Return a training that is off, in the framework of the first one."""
    return replace(off(update, key, factor), framework="torch")


def off(update: int, key: str, factor: float, *more: tuple[int, str, float]) -> MemoryTraining:
    other = training("b")
    for at, name, by in ((update, key, factor), *more):
        other.arrays[at][name] = (other.arrays[at][name] * np.float32(by)).astype(np.float32)
    return other


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("update", [1, 3, 5])
def test_the_first_difference_is_found_wherever_it_is(update: int, key: str) -> None:
    found = compare(training(), off(update, key, 1.01))
    assert found.first is not None
    assert (found.first.update, found.first.key) == (update, key)
    assert found.first.distance == pytest.approx(1 - 1 / 1.01, rel=1e-3)
    assert found.first.noise == FLOORS[key.partition("/")[0]]
    assert (found.outcome, found.exit_code, found.same_through) == ("differs", 1, update - 1)
    assert found.first.shape == "b is 1.01 × a"
    assert found.first.ulps is not None
    assert found.first.ulps > 1e4


@pytest.mark.parametrize("key", KEYS)
def test_what_is_within_ten_times_the_floor_is_the_same(key: str) -> None:
    found = compare(training(), off(2, key, 1 + 5 * FLOORS[key.partition("/")[0]]))
    assert (found.outcome, found.exit_code, found.same_through) == ("same", 0, 5)


def test_update_comes_before_stage_and_stage_before_order_and_size() -> None:
    places = [
        (3, "grad/b.weight", 1.001),
        (3, "grad/a.weight", 1.0001),
        (3, "update/a.weight", 9.0),
        (4, "data/x", 5.0),
    ]
    found = compare(training(), off(*places[0], *places[1:]))
    assert [(each.update, each.key) for each in found.differences] == [
        (3, "grad/a.weight"),
        (3, "grad/b.weight"),
        (3, "update/a.weight"),
        (4, "data/x"),
    ]


def test_the_sentence_says_where_how_much_and_what_matched() -> None:
    a, b = training("mine"), off(3, "grad/a.weight", 1.0001)
    found = compare(a, b)
    assert found.sentence.startswith("Same through update 2. First differs at update 3 in grad/a.weight, 50")
    assert found.sentence.endswith("× noise (b is 1.0001 × mine); data, params, activations and loss matched.")
    assert found.labels == ("mine", "b")
    assert compare(a, off(1, "param/a.weight", 2.0)).sentence.startswith(
        "Differs from update 1 on, first in param/a.weight, "
    )
    same = compare(a, training("b"))
    assert same.sentence == (
        "Same through update 5: 70 pairs agree within ten times the measured floors; without twins this is less sure."
    )
    assert not same.has_twins
    assert any("no twins" in each for each in same.warnings)


def test_with_twins_noise_is_theirs_key_by_key_and_never_falls() -> None:
    a = training()
    noise = Noise.of_twins(a, [twin(2, "grad/a.weight", 1.001)])
    assert noise.twins == 1
    assert noise.at("grad/a.weight", np.arange(1, 6)) == pytest.approx([2e-7, 1e-3, 1e-3, 1e-3, 1e-3], rel=0.01)
    assert noise.at("grad/b.weight", np.arange(1, 6)) == pytest.approx([2e-7] * 5)
    assert compare(a, off(3, "grad/a.weight", 1.005), noise).outcome == "same"
    assert compare(a, off(1, "grad/a.weight", 1.005), noise).outcome == "differs"
    found = compare(a, off(3, "grad/b.weight", 1.005), noise)
    assert found.first is not None
    assert found.first.key == "grad/b.weight"
    assert found.has_twins


def test_noises_are_joined_by_the_larger() -> None:
    a = training()
    one, other = (Noise.of_twins(a, [twin(update, "grad/a.weight", 1.001)]) for update in (2, 4))
    both = one | other
    assert both.twins == 2
    for noise in (one, other):
        assert (both.at("grad/a.weight", np.arange(9)) >= noise.at("grad/a.weight", np.arange(9))).all()
    assert both.at("grad/a.weight", np.array([2]))[0] == one.at("grad/a.weight", np.array([2]))[0]


def test_twins_of_another_framework_are_measured_among_themselves() -> None:
    base, factor = training(), 1.01
    foreign = [
        off(2, "act/a", factor),
        off(2, "act/a", factor),
    ]  # as far from the base as a bug, and equal to each other
    noise = Noise.of_twins(base, foreign)
    assert noise.at("act/a", np.array([5]))[0] == FLOORS["act"]
    assert noise.twins == 1


def test_rows_in_another_order_are_no_noise_and_a_difference_of_data() -> None:
    a, b = training(), training("a")
    order = np.random.default_rng(0).permutation(40)
    for arrays in b.arrays.values():
        for key in ("data/x", "act/a", "act/b"):
            arrays[key] = arrays[key][order]
    noise = Noise.of_twins(a, [b])
    assert all(noise.at(key, np.array([5]))[0] == 2e-7 for key in ("data/x", "act/a"))
    found = compare(a, b)
    assert found.first is not None
    assert (found.first.update, found.first.key, found.first.shape) == (1, "data/x", "the same rows in another order")
    assert {each.key for each in found.differences} == {"data/x"}
    assert any("another order in 5 of 5 updates" in each for each in found.warnings)


def test_a_gradient_of_one_alone_is_compared_with_zeros() -> None:
    b = training("b")
    for arrays in b.arrays.values():
        del arrays["grad/b.weight"]
    found = compare(training(), b)
    assert found.first is not None
    assert (found.first.update, found.first.key, found.first.distance) == (1, "grad/b.weight", 1.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_in_one_alone_differs(value: float) -> None:
    b = training("b")
    b.arrays[4]["grad/a.weight"][3, 1] = value
    found = compare(training(), b)
    assert found.first is not None
    assert (found.first.update, found.first.key, found.first.distance) == (4, "grad/a.weight", float("inf"))
    assert "NaN or infinite" in found.sentence
    both = training("a")
    both.arrays[4]["grad/a.weight"][3, 1] = value
    assert compare(both, b).outcome == "same"


# wrong uses


def test_other_seeds_are_said() -> None:
    found = compare(training(), training("b", seed=1))
    assert found.outcome == "differs"
    assert found.sentence.endswith(
        "The batches are not the same and the weights they start from are others, too: "
        "other seeds, another order, or other preprocessing."
    )


def test_other_batches_are_said() -> None:
    b = training("b")
    for update, arrays in training("b", seed=1).arrays.items():
        b.arrays[update]["data/x"] = arrays["data/x"]
    assert compare(training(), b).sentence.endswith(
        "The batches are not the same: other seeds, another order, or other preprocessing."
    )


def test_other_weights_are_said() -> None:
    b = training("b")
    for update, arrays in training("b", seed=1).arrays.items():
        b.arrays[update]["param/a.weight"] = arrays["param/a.weight"]
    assert "The trainings start from other weights" in compare(training(), b).sentence


def test_a_shorter_run_is_compared_as_far_as_it_goes() -> None:
    found = compare(training(), training("b", range(1, 4)))
    assert (found.outcome, found.same_through) == ("same", 3)
    assert found.warnings[0] == "b ends at update 3, a at 5: what both have was compared, through update 3"


def test_without_common_updates_nothing_can_be_said() -> None:
    found = compare(training(), training("b", range(10, 12)))
    assert (found.outcome, found.exit_code) == ("cannot say", 2)
    assert found.sentence == (
        "Cannot say: no update is in both. a has updates 1 to 5, b has updates 10 to 11. Probe the same updates in both."
    )


def test_without_common_keys_nothing_can_be_said() -> None:
    found = compare(training(keys=["grad/w"]), training("b", keys=["grad/kernel"]))
    assert found.outcome == "cannot say"
    assert "no key is in both. a has keys such as grad/w, b such as grad/kernel. Map the names" in found.sentence


def test_unmapped_parameters_are_said_though_the_rest_agrees() -> None:
    common = {update: {"loss/total": np.float32(update)} for update in (1, 2)}
    a, b = (
        MemoryTraining(name, "", {n: {**each, f"grad/{name}": np.ones(3, np.float32)} for n, each in common.items()})
        for name in ("w", "kernel")
    )
    found = compare(a, b)
    assert found.outcome == "cannot say"
    assert "the gradients have no name in common, such as grad/w and grad/kernel" in found.sentence
    b.arrays[2]["loss/total"] = np.float32(3)
    found = compare(a, b)
    assert found.outcome == "differs"
    assert [each for each in found.warnings if each.startswith("only w has grad/w: not compared")]


def test_names_of_strangers_are_inert() -> None:
    a, b = (training(keys=["grad/\x1b[31mw"]) for _ in range(2))
    b.arrays[1]["grad/\x1b[31mw"] *= 2
    assert "\x1b" not in compare(a, b).sentence


def test_progress_is_told() -> None:
    seen: list[tuple[int, int]] = []
    compare(training(), training("b"), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(n, 5) for n in range(1, 6)]


def test_at_most_a_thousand_differences_are_listed() -> None:
    names = [f"grad/{n}.weight" for n in range(150)]
    a, b = (training(label, range(1, 11), names, seed) for seed, label in enumerate("ab"))
    found = compare(a, b)
    assert len(found.differences) == 1000
    assert found.differences[0].ulps is not None
    assert found.as_json()["differences"][999]["key"] == found.differences[999].key


# statistics alone


@dataclass
class Known:
    """A training without arrays but for some updates."""

    inner: MemoryTraining
    with_arrays: tuple[int, ...] = ()
    fingerprints: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.inner.label

    @property
    def framework(self) -> str:
        return self.inner.framework

    def updates(self) -> Sequence[int]:
        return self.inner.updates()

    def keys(self, update: int) -> Sequence[str]:
        return self.inner.keys(update)

    def array(self, update: int, key: str) -> np.ndarray | None:
        return self.inner.array(update, key) if update in self.with_arrays else None

    def statistics(self, update: int, key: str) -> Statistics | None:
        found, array = self.inner.statistics(update, key), self.inner.array(update, key)
        if found is None or array is None or not self.fingerprints:
            return found
        mark = np.sort(array, axis=None).tobytes().hex()
        return Statistics(found.count, found.mean, found.std, found.norm, found.min, found.max, mark)


@dataclass
class Offered(Known):
    """The same by columns."""

    def array_updates(self) -> Sequence[int]:
        return self.with_arrays

    def statistics_columns(self, key: str) -> tuple[np.ndarray, Any]:
        found = [(update, self.statistics(update, key)) for update in self.updates()]
        kept = [(update, each) for update, each in found if each is not None]
        names = ("count", "mean", "std", "norm", "min", "max", "fingerprint")
        columns = {name: np.array([getattr(each, name) for _, each in kept]) for name in names}
        return np.array([update for update, _ in kept]), type("Columns", (), columns)


@pytest.mark.parametrize("kind", [Known, Offered])
@pytest.mark.parametrize(
    "key", ["data/x", "act/b", "loss/total", "grad/a.weight", "update/b.weight", "opt/norm.running_mean"]
)
def test_statistics_say_it_where_there_are_no_arrays(kind: type[Known], key: str) -> None:
    a, b = kind(training(), (1, 2)), kind(off(4, key, 1.001), (1, 2))
    found = compare(a, b)
    assert found.first is not None
    assert (found.first.update, found.first.key) == (4, key)
    assert found.first.distance == pytest.approx(1e-3, rel=0.05)
    assert found.compared == 70
    assert compare(a, kind(training("b"), (1, 2))).outcome == "same"
    twins = Noise.of_twins(a, [kind(twin(4, key, 1.001), (1, 2))])
    assert compare(a, b, twins).outcome == "same"


def test_fingerprints_know_an_order_from_other_values() -> None:
    b = training("b")
    b.arrays[3]["grad/a.weight"] = b.arrays[3]["grad/a.weight"][::-1]
    assert compare(Known(training()), Known(b)).outcome == "same"
    assert compare(training(), b).outcome == "differs"


def test_stages_are_in_the_order_of_a_step() -> None:
    assert list(FLOORS) == list(STAGES)
