"""Find the part of a step that makes two trainings differ: give one's inputs to the other's step; see what closes the gap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from noether_core.parity.between_runs.step import Culprit, Step
from noether_core.parity.between_runs.swaps import Replay, StepError, Swap
from noether_core.parity.divergence import Comparison, Divergence, Noise, Training
from noether_core.parity.divergence.noise import TIMES
from noether_core.text import inert

_WORDS: Mapping[Culprit, str] = {
    "batch": "the batch: the step itself is the same",
    "params": "the parameters that the step starts from: the step itself is the same",
    "optimizer state": "the state that is carried from step to step: the step itself is the same",
    "forward": "the forward or backward pass, from the batch and the parameters to gradients and buffers",
    "clip": "how gradients are clipped",
    "optimizer": "the optimizer, from (clipped) gradients to updates and its state",
}


@dataclass(frozen=True)
class Transplant:
    """Say which part of the step makes two trainings differ.

    Attributes:
        culprit: the part; None if it cannot be said.
        sentence: the answer.
        update: the step that was replayed; 0 if none was.
        swaps: what was tried, in that order.
    """

    culprit: Culprit | None
    sentence: str
    update: int = 0
    swaps: tuple[Swap, ...] = ()


def transplant(
    step_a: Step, step_b: Step, a: Training, b: Training, comparison: Comparison, noise: Noise | None = None
) -> Transplant:
    """Replay the first differing step with parts of one training in the other's step, and name the part that closes the gap.

    A's batch, parameters or state go into B's step, one at a time: what closes the gap there is at fault, and not the step. If
    none does, all of them go in, then A's gradients too, then A's clipped gradients: the first stage that B's step still gives
    otherwise is at fault. A difference that no single step shows, only the mean over many, is looked for in a replay of all.

    Args:
        step_a: a function of the first training's own code; see `Step`.
        step_b: one of the second's.
        a: what the first computed, with arrays of the first differing update and the one before.
        b: what the second computed.
        comparison: of `a` and `b`.
        noise: of their twins; None: floors stand in.

    Example::

        found = compare_trainings("runs/torch", "runs/jax")
        print(transplant(step_of_torch, step_of_jax, read_training("runs/torch"), read_training("runs/jax"), found).sentence)
    """
    if comparison.first is None:
        return Transplant(None, f"There is nothing to transplant: {comparison.sentence}")
    replay = Replay((step_a, step_b), a, b, _updates(comparison.first, a, b), noise)
    swaps: list[Swap] = []
    try:
        return _replayed(replay, comparison.first, comparison.labels, swaps)
    except StepError as error:
        return Transplant(None, f"Cannot say: {error}", replay.update, tuple(swaps))


def _replayed(replay: Replay, first: Divergence, labels: Sequence[str], swaps: list[Swap]) -> Transplant:
    """Say what replaying shows; `swaps` takes what was tried.

    Raises:
        StepError: if a step function fails.
    """
    if problem := replay.problem():
        return Transplant(None, f"Cannot say: {problem}", replay.update)
    if replay.is_blind_to(first.key):
        return _unseen(first, labels)
    if (unlike := replay.unlike()) is not None:
        return Transplant(None, _unlike(unlike, labels, replay.update), replay.update)
    for culprit, swap in replay.swaps():
        swaps.append(swap)
        if culprit is not None:
            return Transplant(culprit, _sentence(culprit, replay.update, labels, swap), replay.update, tuple(swaps))
    return Transplant(None, f"Cannot say: no part of {labels[0]} closes the gap.", replay.update, tuple(swaps))


def _unlike(gap: Divergence, labels: Sequence[str], update: int) -> str:
    return (
        f"Cannot say: given what {labels[0]} recorded, its step function does not give what {labels[0]} recorded at update"
        f" {update}: {inert(gap.key)} is {gap.distance:.2g} apart. Let it compute the step as the training does"
    )


def _updates(first: Divergence, a: Training, b: Training) -> list[int]:
    """Return the updates to replay: the first differing one; all from there where it differs by less than its noise."""
    if first.distance > TIMES * first.noise:
        return [first.update]
    other = set(b.updates())
    return [update for update in a.updates() if update in other and update >= first.update]


def _unseen(first: Divergence, labels: Sequence[str]) -> Transplant:
    """Say what follows where the step does not return the key that differs, and gives all else as A recorded it."""
    key, lacks = inert(first.key), f"{labels[1]}'s step function does not return"
    advice = "Let it return what `probe` records"
    if first.stage != "act":
        sentence = f"Cannot say: {lacks} {key}, and all that it returns is the same. {advice}"
        return Transplant(None, sentence, first.update)
    sentence = (
        f"At update {first.update} the culprit is {_WORDS['forward']}: {key} differs, while batch and parameters are the same."
        f" It changes nothing else of the step, and was not replayed: {lacks} it. {advice}, to be sure."
    )
    return Transplant("forward", sentence, first.update)


def _sentence(culprit: Culprit, update: int, labels: Sequence[str], swap: Swap) -> str:
    if culprit == "optimizer state" and swap.given == "nothing":
        return (
            f"At update {update} {labels[1]} did something else than its own step does with what it recorded: what it carries"
            " from step to step (optimizer state, a count, random numbers) is not what it recorded."
        )
    closing = f", which closes the gap when {labels[1]} is given {labels[0]}'s" if swap.closes else ""
    return f"At update {update} the culprit is {_WORDS[culprit]}{closing}."
