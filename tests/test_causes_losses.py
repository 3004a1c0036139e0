"""Check what is said of a loss that differs: what was not compared is not cleared, and shifted targets are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from noether_core.parity.divergence import Comparison, MemoryTraining, compare
from noether_core.parity.divergence.causes import causes_of
from noether_core.text import numbers_apart
from tests.cause_trainings import Network, network

RIGHT = Network()
Keep = Callable[[str], bool]


def compared(a: MemoryTraining, b: MemoryTraining) -> Comparison:
    found = compare(a, b)
    return found.with_causes(causes_of(a, b, None, found))


def keeping(training: MemoryTraining, keep: Keep, name: Callable[[str], str] = str) -> MemoryTraining:
    arrays = {
        update: {name(key): value for key, value in each.items() if keep(key)}
        for update, each in training.arrays.items()
    }
    return MemoryTraining(training.label, training.framework, arrays)


# ------------------------------------------------------------------ what was not compared

FORWARD: Mapping[str, Network] = {
    "SiLU for GELU": replace(RIGHT, gelu=functional.silu),
    "mean for maximum": replace(RIGHT, pool=lambda x: functional.avg_pool2d(x, 2)),
    "a norm's epsilon": replace(RIGHT, layer_norm=lambda x, w, b: functional.layer_norm(x, (12,), w, b, 1e-2)),
    "no residual": replace(RIGHT, residual=lambda _, y: y),
}


def no_activation(key: str) -> bool:
    return not key.startswith("act/")


def first_layers(key: str) -> bool:
    return not key.startswith("act/") or key in ("act/conv", "act/bn")


def renamed(key: str) -> str:
    return key.replace("act/", "act/their.")


UNSEEN: Mapping[str, tuple[Keep, Keep, Callable[[str], str], str]] = {
    "in neither": (no_activation, no_activation, str, "No activations were compared, for neither has any"),
    "in the first alone": (bool, no_activation, str, "No activations were compared, for the second has none"),
    "in the second alone": (no_activation, bool, str, "No activations were compared, for the first has none"),
    "under other names": (bool, bool, renamed, "No activations were compared, for none has the same name in both"),
    "of the first layers": (bool, first_layers, str, "act/bn is the last activation that was compared"),
}


@pytest.mark.parametrize("unseen", UNSEEN)
@pytest.mark.parametrize("bug", FORWARD)
def test_the_loss_is_not_blamed_for_layers_that_nobody_compared(bug: str, unseen: str) -> None:
    keep_a, keep_b, name, words = UNSEEN[unseen]
    found = compared(keeping(network(RIGHT), keep_a), keeping(network(FORWARD[bug]), keep_b, name))
    assert found.first is not None
    assert found.first.key == "loss/total"
    assert found.causes[0].id == "forward-other", [each.sentence for each in found.causes]
    assert words in found.causes[0].sentence
    assert "Probe activations in both" in found.causes[0].sentence
    assert {each.id for each in found.causes} == {"forward-other", "loss-function"}
    figures = found.causes[1].sentence.partition("is ")[2].partition(" in the other")[0].split(" in one and ")
    assert figures[0] != figures[1]


@pytest.mark.parametrize("bug", FORWARD)
def test_the_backward_pass_is_not_blamed_where_no_loss_was_compared_either(bug: str) -> None:
    def keep(key: str) -> bool:
        return not key.startswith(("act/", "loss/"))

    found = compared(keeping(network(RIGHT), keep), keeping(network(FORWARD[bug]), keep))
    assert found.causes[0].id == "forward-other", [each.sentence for each in found.causes]
    assert not any("while" in each.sentence for each in found.causes)


LOSSES: Mapping[str, tuple[str, Callable[..., torch.Tensor]]] = {
    "smoothed": ("label-smoothing", lambda x, y: functional.cross_entropy(x, y, label_smoothing=0.1)),
    "summed": ("loss-reduction", lambda x, y: functional.cross_entropy(x, y, reduction="sum")),
    "ignoring": ("loss-mask", lambda x, y: functional.cross_entropy(x, y, ignore_index=0)),
    "another row's": ("loss-function", lambda x, y: functional.cross_entropy(x, y.roll(1))),
}


@pytest.mark.parametrize("unseen", ["in the first alone", "in the second alone"])
@pytest.mark.parametrize("bug", LOSSES)
def test_the_loss_of_one_sides_activations_is_known_by_its_value(bug: str, unseen: str) -> None:
    keep_a, keep_b, _, _ = UNSEEN[unseen]
    wanted, loss = LOSSES[bug]
    found = compared(keeping(network(RIGHT), keep_a), keeping(network(replace(RIGHT, loss=loss)), keep_b))
    assert found.causes[0].id == wanted, [each.sentence for each in found.causes]


def test_a_loss_of_which_statistics_alone_were_kept_is_still_told() -> None:
    class Sparse(MemoryTraining):
        def array_updates(self) -> list[int]:
            return []

        def array(self, update: int, key: str) -> Any:
            return None

        def statistics(self, update: int, key: str) -> Any:
            return MemoryTraining("", "", self.arrays).statistics(update, key)

    one, other = (Sparse("", "", {100: {"loss/total": np.float32(value)}}) for value in (1.5, 1.25))
    assert "1.5 in one and 1.25 in the other" in compared(one, other).causes[-1].sentence


@pytest.mark.parametrize(("one", "other"), [(1.0, 1.0 + 2**-52), (1.00826, 1.00826007), (0.1, 0.2), (1e300, -1e300)])
def test_two_numbers_that_are_apart_are_printed_apart(one: float, other: float) -> None:
    words = numbers_apart(one, other)
    assert words[0] != words[1]
    assert [float(each) for each in words] == pytest.approx([one, other], rel=1e-5)


# ------------------------------------------------------------------ targets of a sequence

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def entropy(logits: torch.Tensor, targets: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), **arguments)


def tokens(loss: Loss, length: int = 9, inputs: int = 9, steps: int = 2) -> MemoryTraining:
    """Keep two updates of a language model, of so many accumulation steps: `length` tokens, of which `inputs` are read."""
    generator = torch.Generator().manual_seed(0)
    updates: dict[int, dict[str, Any]] = {}
    for update in (1, 2):
        kept: dict[str, Any] = {}
        for step in range(steps):
            end = f"@{step}" if step else ""
            x = torch.randint(0, 7, (4, length), generator=generator)
            logits = torch.randn(4, inputs, 7, generator=generator)
            kept |= {f"data/x{end}": x, f"act/norm{end}": 2 * logits, f"act/head{end}": logits}
            kept[f"loss/total{end}"] = loss(logits, x)
        updates[update] = {key: value.numpy() for key, value in kept.items()}
    return MemoryTraining("tokens", "torch", updates)


def next_token(x: torch.Tensor, y: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return entropy(x[:, :-1], y[:, 1:], **arguments)


def same_token(x: torch.Tensor, y: torch.Tensor, **arguments: Any) -> torch.Tensor:
    return entropy(x, y, **arguments)


def by_sequence(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Average the tokens of each sequence that are no padding, then the sequences."""
    rows = zip(x, y, strict=True)
    return torch.stack([functional.cross_entropy(row, targets, ignore_index=0) for row, targets in rows]).mean()


SHIFTED: Mapping[str, tuple[Loss, Loss, int, str, str]] = {
    "not shifted": (next_token, same_token, 9, "loss-function", "targets of the position after"),
    "shifted back": (
        next_token, lambda x, y: entropy(x[:, 1:], y[:, :-1]), 9, "loss-function", "targets of the position before",
    ),
    "rolled": (next_token, lambda x, y: entropy(x, y.roll(-1, 1)), 9, "loss-function", "the ends exchanged"),
    "of inputs": (
        lambda x, y: entropy(x, y[:, 1:]), lambda x, y: entropy(x, y[:, :-1]), 8, "loss-function",
        "targets of the same position",
    ),
    "smoothed": (
        next_token, lambda x, y: next_token(x, y, label_smoothing=0.05), 9, "label-smoothing", "smoothed by 0.05",
    ),
    "without padding": (
        next_token, lambda x, y: next_token(x, y, ignore_index=0), 9, "loss-mask", "without targets of 0",
    ),
    "summed": (next_token, lambda x, y: next_token(x, y, reduction="sum"), 9, "loss-reduction", "the sum of"),
    "smoothed without padding": (
        lambda x, y: same_token(x, y, ignore_index=0), lambda x, y: same_token(x, y, ignore_index=0, label_smoothing=0.1),
        9, "label-smoothing", "smoothed by 0.1",
    ),
    "by sequence without padding": (
        lambda x, y: same_token(x, y, ignore_index=0), by_sequence, 9, "loss-reduction", "the rows' means",
    ),
}  # fmt: skip


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("bug", SHIFTED)
def test_targets_that_are_shifted_are_named(bug: str, steps: int) -> None:
    one, other, inputs, wanted, words = SHIFTED[bug]
    found = compared(tokens(one, inputs=inputs, steps=steps), tokens(other, inputs=inputs, steps=steps))
    assert found.first is not None
    assert found.first.key == "loss/total"  # of the first accumulation step
    assert found.causes[0].id == wanted, [each.sentence for each in found.causes]
    assert words in found.causes[0].sentence


def test_classes_may_come_second() -> None:
    def images(**arguments: Any) -> MemoryTraining:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(2, 5, 3, 4, generator=generator), torch.randint(0, 5, (2, 3, 4), generator=generator)
        loss = functional.cross_entropy(x, y, **arguments)
        return MemoryTraining("", "", {1: {"data/y": y.numpy(), "act/head": x.numpy(), "loss/total": loss.numpy()}})

    assert compared(images(), images(label_smoothing=0.1)).causes[0].id == "label-smoothing"


def test_what_comes_first_is_of_the_first_accumulation_step() -> None:
    keys = ["loss/kl", "loss/total", "loss/kl@1", "loss/total@1", "loss/kl@10", "loss/total@10"]
    for first in range(len(keys)):
        one = MemoryTraining("", "", {1: dict.fromkeys(keys, np.float32(1))})
        other = MemoryTraining("", "", {1: {key: np.float32(1 + (at >= first)) for at, key in enumerate(keys)}})
        assert [each.key for each in compare(one, other).differences] == keys[first:]
