"""Draw a training's history, with all that interrupts trainings, and keep the books of what the uninterrupted one had done.

A history ends a run in any way (its end, an exception, as if killed), goes on from any saved state or from the beginning, goes
back in one process, evaluates and logs in between. What was done on the way to where it is now, less all that was gone back
behind, is done again without any interruption, in another directory: both must hold the same.
"""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import noether_jax
import noether_torch
from noether_core import read_run

WAYS = ("torch", "jax", "fused")
Event = tuple[str, Any]  # a step's outputs, or what was logged or evaluated


class Checkpoint(NamedTuple):
    """Hold what was saved: the state, how often it was steered to, and for the fused way what the function carried."""

    events: list[Event]
    state: dict[str, Any]
    tracked: Any
    iteration: dict[str, int] | None  # to start at, for what a compiled function carried; None: in an update's middle


def draw_configs(rng: random.Random, *, is_fused: bool) -> list[dict[str, Any]]:
    """Return callbacks of any kind whose numbers do not depend on time."""
    configs: list[dict[str, Any]] = []
    mean = "mean" if is_fused or rng.random() < 0.5 else "last"  # which log under the same key
    reductions = [mean, "std", "sum", "max"] + (["stack"] if not is_fused else [])
    for number, reduce in enumerate(rng.sample(reductions, rng.randint(1, 3))):
        unit = rng.choice(["updates", "updates", "epochs", "samples"])
        most = {"updates": 10, "epochs": 3, "samples": 30}[unit]
        saves = reduce == "stack" or rng.random() < 0.6
        configs.append(
            {
                f"every_n_{unit}": rng.randint(1, most),
                "id": f"c{number}",
                "keys": ["field"] if reduce == "stack" else ["loss"],
                "reduce": reduce,
                "save_output": saves,
                "log_output": reduce != "stack" and (not saves or rng.random() < 0.7),
            }
        )
    first = configs[0]
    if first["log_output"] and "every_n_updates" in first:
        n, reduce = first["every_n_updates"], first["reduce"]
        key = f"loss/{'' if reduce in ('mean', 'last') else reduce + '/'}U{n}"
        configs.append(
            {"name": "BestMetricCallback", "every_n_updates": n, "source_metric_key": key, "higher_is_better": False}
        )
    if rng.random() < 0.5:
        configs.append({"name": "OnlineLossCallback", "every_n_updates": rng.randint(1, 7)})
    return configs


class Killed(Exception):
    """End a run by an exception of the loop's own."""


class Training:
    """Make the steps of a training, in one way, and keep its run."""

    def __init__(self, way: str, configs: list[dict[str, Any]], accumulation_steps: int, per_epoch: int) -> None:
        self.run_class: Any = noether_torch.Run if way == "torch" else noether_jax.Run
        self.is_fused = way == "fused"
        self._configs, self.accumulation_steps, self._per_epoch = configs, accumulation_steps, per_epoch
        self.tracked: Any = None
        self.run: Any = None

    def open(self, path: Path, start: dict[str, int] | None = None) -> None:
        """Begin in a run directory."""
        self.run = self.run_class(
            path,
            self._configs,
            updates_per_epoch=self._per_epoch,
            effective_batch_size=4,
            accumulation_steps=self.accumulation_steps,
            start=start and {"update": start["update"]},
        )
        self.run.__enter__()
        self.init()

    def init(self) -> None:
        """Give the compiled function a fresh state."""
        if self.is_fused:
            example = {"loss": np.float32(0), "field": np.zeros(3, np.float32)}
            self.tracked = self.run.init(example)

    def do(self, event: Event) -> None:
        """Make a step, log or evaluate."""
        kind, what = event
        if kind == "log":
            self.run.log(what)
        elif kind == "evaluate":
            with self.run.evaluate(what[0]):
                for outputs in what[1]:
                    self.run.step(self._placed(outputs), losses=outputs["loss"])
        elif self.is_fused:
            tracked = self.run.track(self.tracked, self._placed(what))
            self.tracked = self.run.step(tracked, losses=what["loss"])
        else:
            self.run.step(self._placed(what), losses=what["loss"])

    def _placed(self, outputs: dict[str, Any]) -> dict[str, Any]:
        if self.run_class is noether_torch.Run:
            import torch

            return {name: torch.tensor(value) for name, value in outputs.items()}
        return {name: jax.numpy.asarray(value) for name, value in outputs.items()}

    def load(self, checkpoint: Checkpoint) -> None:
        """Go on from a saved state, in the run that is open."""
        self.run.load_state_dict(copy.deepcopy(checkpoint.state))
        self.init()


class History:
    """Do random things to a training.

    Args:
        seed: of the draw.
        way: one of `WAYS`.
        path: the run directory.
    """

    def __init__(self, seed: int, way: str, path: Path) -> None:
        self._rng = random.Random(f"{seed} {way}")
        rng = self._rng
        self._path = path
        self._arguments = way, draw_configs(rng, is_fused=way == "fused"), rng.choice([1, 1, 2, 3]), rng.randint(2, 7)
        self._training = Training(*self._arguments)
        self._number = 0
        self._events: list[Event] = []
        self._checkpoints: list[Checkpoint] = []
        self._is_open = False

    def live(self, actions: int) -> None:
        """Do so many random things, and come to the training's end."""
        chances: dict[Callable[[], None], float] = {
            self._steps: 6,
            self._save: 3,
            self._end: 2,
            self._go_back: 1,
            self._evaluate: 1,
            self._log: 0.5,
        }
        self._go_on()
        for _ in range(actions):
            self._rng.choices([*chances], [*chances.values()])[0]()
        self._steps()
        self._log()
        self._training.run.finish()

    def _value(self) -> float:
        self._number += 1
        return self._rng.uniform(-1, 1)

    def _outputs(self) -> dict[str, Any]:
        return {"loss": np.float32(self._value()), "field": np.array([self._value() for _ in range(3)], np.float32)}

    def _do(self, event: Event) -> None:
        self._training.do(event)
        self._events.append(event)
        if event[0] != "step":  # what was saved before at this update has not seen it
            steps = self._count(self._events)
            self._checkpoints = [each for each in self._checkpoints if self._count(each.events) != steps]

    @staticmethod
    def _count(events: list[Event]) -> int:
        return sum(kind == "step" for kind, _ in events)

    def _steps(self) -> None:
        for _ in range(self._rng.randint(1, 12)):
            self._do(("step", self._outputs()))

    def _log(self) -> None:
        self._number += 1
        self._do(("log", {f"own/{self._number}": self._value()}))

    def _evaluate(self) -> None:
        self._number += 1
        self._do(("evaluate", (f"eval-{self._number}", [self._outputs() for _ in range(self._rng.randint(1, 2))])))

    def _save(self) -> None:
        self._checkpoints.append(self._checkpoint())

    def _checkpoint(self) -> Checkpoint:
        run, iteration = self._training.run, None
        if not run.accumulated:
            iteration = {unit: getattr(run.counter, unit) for unit in ("epoch", "update", "sample")}
        return Checkpoint([*self._events], run.state_dict(), self._training.tracked, iteration)

    def _end(self) -> None:
        """End the run in one of the ways that trainings end, and go on."""
        run, way = self._training.run, self._rng.choice(["end", "end", "exception", "kill", "save after"])
        if way == "kill":
            run.log_writer.close()  # and no more
        elif way == "exception":
            run.__exit__(Killed, Killed(), None)
        else:
            if way == "end" and self._rng.random() < 0.7:
                self._save()
            run.__exit__(None, None, None)
            if way == "save after" and not run.accumulated:
                self._checkpoints.append(self._checkpoint())
        self._training = Training(*self._arguments)
        self._go_on()

    def _go_on(self) -> None:
        """Open the run again: from a saved state, often the newest one, or from the beginning."""
        if not self._checkpoints or self._rng.random() < 0.1:
            self._events = []
            self._training.open(self._path)
            return
        checkpoint = self._chosen()
        starts_there = checkpoint.iteration is not None and checkpoint.iteration["update"] > 0
        if self._training.is_fused and starts_there and self._rng.random() < 0.5:
            self._training.open(self._path, checkpoint.iteration)
            self._training.tracked = checkpoint.tracked
            others = {
                name: state
                for name, state in checkpoint.state["callbacks"].items()
                if "Track" not in name and ":c" not in name
            }
            for name, callback in self._training.run._named().items():
                if name in others:
                    callback.load_state_dict(others[name])
            self._events = [*checkpoint.events]
            self._steps()  # before it, the run does not know what the function carries
            return
        self._training.open(self._path, checkpoint.iteration if self._rng.random() < 0.2 and starts_there else None)
        self._load(checkpoint)

    def _chosen(self) -> Checkpoint:
        return self._checkpoints[-1] if self._rng.random() < 0.6 else self._rng.choice(self._checkpoints)

    def _load(self, checkpoint: Checkpoint) -> None:
        self._training.load(checkpoint)
        self._events = [*checkpoint.events]

    def _go_back(self) -> None:
        if self._checkpoints:
            self._load(self._chosen())

    def uninterrupted(self, path: Path) -> None:
        """Do in another directory what led to where this history is now."""
        training = Training(*self._arguments)
        training.open(path)
        for event in self._events:
            training.do(event)
        training.run.finish()


def result(path: Path) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return what a run holds: its entries, and its arrays by file."""
    read = read_run(path)
    assert read.problems == []
    arrays = {f"{file.interval}/{file.iteration}": file.load() for file in read.arrays}
    return read.entries, {
        name: {key: (array.dtype.name, array.tolist()) for key, array in each.items()} for name, each in arrays.items()
    }


def check(seed: int, way: str, path: Path, actions: int) -> None:
    """Compare a history with the uninterrupted training."""
    history = History(seed, way, path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        history.live(actions)
        history.uninterrupted(path / "one")
    found, wanted = result(path / "run"), result(path / "one")
    assert found[0] == wanted[0]
    assert found[1] == wanted[1]
