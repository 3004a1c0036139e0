"""Stop a drawn training after any accumulation step, and go on with it in another number of processes."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from parity_tests.drawn_trainings import (
    EFFECTIVE_BATCH_SIZE,
    UPDATES_PER_EPOCH,
    Result,
    Training,
    add_lasts,
    converted,
    draw,
    read_result,
    without_last,
)

MOST = 3  # processes


class Restart(NamedTuple):
    """Say how a training is done: its first `cut` accumulation steps by `before` processes, the others by `after`.

    The first ones end their run, which gives out what they had of the intervals under way, or are killed.
    """

    training: Training
    cut: int
    before: int
    after: int
    is_ended: bool


def draw_restart(seed: int) -> Restart:
    """Return a training that all processes end at one update, and where it is cut: in the middle of an update too."""
    for number in itertools.count(1000 * seed):
        training = draw(number, "keys" if seed % 3 == 0 else "plain", MOST)
        if len(set(training.updates)) == 1 and len(training.steps) * training.accumulation_steps > 1:
            break
    rng = np.random.default_rng([seed, 7])
    before, after = (int(count) for count in rng.integers(1, MOST + 1, 2))
    cut = int(rng.integers(1, len(training.steps) * training.accumulation_steps))
    at = itertools.count()
    steps = [[step[: before if next(at) < cut else after] for step in update] for update in training.steps]
    configs = training.configs
    if cut % training.accumulation_steps:  # the newest values of processes that are no more: of which of these, is open
        configs = [without_last(config) for config in configs]
    return Restart(dataclasses.replace(training, steps=steps, configs=configs), cut, before, after, seed % 2 == 0)


def _run(run_class: Any, restart: Restart, path: Path | str, **arguments: Any) -> Any:
    return run_class(
        path,
        restart.training.configs,
        accumulation_steps=restart.training.accumulation_steps,
        updates_per_epoch=UPDATES_PER_EPOCH,
        effective_batch_size=EFFECTIVE_BATCH_SIZE,
        **arguments,
    )


def run_part(run_class: Any, seed: int, path: Path | str, index: int, *, is_second: bool, **arguments: Any) -> None:
    """Make this process's share of the steps before the cut, and save the state; or load it, and make those after the cut."""
    restart = draw_restart(seed)
    run = _run(run_class, restart, path, **arguments)
    run.start()
    state = Path(f"{path}.state")
    if is_second:
        run.load_state(state)
    of_part = [step for update in restart.training.steps for step in update]
    for step in of_part[restart.cut :] if is_second else of_part[: restart.cut]:
        outputs = step[index]
        run.step(None if outputs is None else converted(run_class, outputs, restart.training))
    if not is_second:
        run.save_state(state)
    if is_second or restart.is_ended:
        run.finish()
        return
    run.log_writer.close()  # and no more: as if it were killed
    if run.exchange is not None:
        run.exchange.close()


def expected_of(restart: Restart, run_class: Any, path: Path) -> Result:
    """Return what the whole training logs and saves in one process, in the order of update, step and process."""
    training = restart.training
    plain = dataclasses.replace(training, configs=[without_last(config) for config in training.configs])
    with warnings.catch_warnings(), _run(run_class, restart._replace(training=plain), path, processes=1) as run:
        warnings.simplefilter("ignore")
        for update in training.steps:
            flat = [outputs for step in update for outputs in step]
            for at, outputs in enumerate(flat, 1):
                given = None if outputs is None else converted(run_class, outputs, training)
                is_last = at == len(flat)
                run.step(given, ends_update=is_last, samples=EFFECTIVE_BATCH_SIZE if is_last else 0)
    return add_lasts(training, read_result(path))
