"""Write loops as people write them, with the features that such loops have, drawn at random, and keep their books.

A loop trains a small model for real, with PyTorch, optax or Flax NNX. Its steps' outputs go to a run in any form that is
allowed; it is stopped, goes on from a saved state, goes back to an older one, evaluates and logs values of its own in between.
What every step put out, less what was gone back behind, is a `Schedule`, of which the reference says what the run must hold.
"""

from __future__ import annotations

import dataclasses
import io
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from flax import nnx

import noether_jax
import noether_torch
from noether_core import read_run
from parity_tests.devices import to_framework
from parity_tests.drawing import KINDS, draw_value, nest
from parity_tests.reference import Outputs, Result, Schedule, Tracker

KEYS = ["aux/loss", "aux/count", "flag", "field", "lr", "time/wide"]
_rng = np.random.default_rng(0)
FEATURES, TARGETS = _rng.normal(size=(16, 3)).astype(np.float32), _rng.normal(size=(16, 1)).astype(np.float32)


class TorchModel:
    """Train by hand in PyTorch."""

    front_end = noether_torch

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)

    def step(self, at: int) -> dict[str, Any]:
        rows = slice(at % 4 * 4, at % 4 * 4 + 4)
        loss = ((self.model(torch.tensor(FEATURES[rows])) - torch.tensor(TARGETS[rows])) ** 2).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss, "weight_norm": self.model.weight.norm()}

    def save(self) -> Any:
        buffer = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, buffer)
        return buffer.getvalue()

    def load(self, saved: Any) -> None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


OPTIMIZER = optax.adam(0.05)


@jax.jit
def optax_step(params: Any, state: Any, x: Any, y: Any) -> Any:
    loss, grads = jax.value_and_grad(lambda params: jnp.mean((x @ params["w"] + params["b"] - y) ** 2))(params)
    updates, state = OPTIMIZER.update(grads, state)
    params = optax.apply_updates(params, updates)
    return params, state, {"loss": loss, "weight_norm": optax.tree.norm(params)}


class OptaxModel:
    """Train with a jitted step in optax."""

    front_end = noether_jax

    def __init__(self) -> None:
        self.params = {"w": jnp.ones((3, 1)), "b": jnp.zeros(1)}
        self.state = OPTIMIZER.init(self.params)

    def step(self, at: int) -> dict[str, Any]:
        rows = slice(at % 4 * 4, at % 4 * 4 + 4)
        self.params, self.state, outputs = optax_step(self.params, self.state, FEATURES[rows], TARGETS[rows])
        return dict(outputs)

    def save(self) -> Any:
        return self.params, self.state

    def load(self, saved: Any) -> None:
        self.params, self.state = saved


@nnx.jit
def nnx_step(model: nnx.Linear, optimizer: Any, x: Any, y: Any) -> dict[str, Any]:
    loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(x) - y) ** 2))(model)
    optimizer.update(model, grads)
    return {"loss": loss, "weight_norm": optax.tree.norm(nnx.state(model, nnx.Param))}


class NnxModel:
    """Train with `nnx.jit`."""

    front_end = noether_jax

    def __init__(self) -> None:
        self.model = nnx.Linear(3, 1, rngs=nnx.Rngs(0))
        self.optimizer = nnx.Optimizer(self.model, OPTIMIZER, wrt=nnx.Param)

    def step(self, at: int) -> dict[str, Any]:
        rows = slice(at % 4 * 4, at % 4 * 4 + 4)
        return dict(nnx_step(self.model, self.optimizer, FEATURES[rows], TARGETS[rows]))

    def save(self) -> Any:
        return jax.tree.map(jnp.copy, nnx.state((self.model, self.optimizer)))

    def load(self, saved: Any) -> None:
        nnx.update((self.model, self.optimizer), jax.tree.map(jnp.copy, saved))


MODELS = {"torch": TorchModel, "optax": OptaxModel, "nnx": NnxModel}


def host(value: Any) -> Any:
    """Return an output as the reference takes it."""
    if isinstance(value, dict):
        return {name: host(each) for name, each in value.items() if name != "nobodys"}
    if isinstance(value, torch.Tensor):
        return noether_torch.Run.backend.to_numpy([value])[0]
    return np.array(value) if isinstance(value, jax.Array) else value


def as_record(outputs: dict[str, Any], form: str) -> Any:
    """Return outputs as another kind of record; its fields are the names."""
    if form == "namedtuple":
        return namedtuple("Outputs", outputs)(**outputs)
    annotations = {"__annotations__": dict.fromkeys(outputs, Any)}
    make: Any = flax.struct.dataclass if form == "flax" else dataclasses.dataclass
    return make(type("Outputs", (), annotations))(**outputs)


class Loop:
    """Train, and keep the books.

    Attributes:
        schedule: what the run was given, less what it went back behind.
    """

    def __init__(self, seed: int, path: Path) -> None:
        self._rng = rng = np.random.default_rng(seed)
        self._path = path
        self._model = MODELS[str(rng.choice(list(MODELS)))]()
        self._keys = [str(key) for key in rng.choice(KEYS, rng.integers(0, 4), replace=False)]
        self._variant = int(rng.integers(2))
        self._accumulation_steps = int(rng.integers(1, 4))
        self._per_epoch, self._batch_size = int(rng.integers(1, 6)), int(rng.integers(1, 9))
        self._trackers = self._draw_trackers()
        self._steps: list[Outputs] = []
        self._saved: list[tuple[int, Any, Any]] = []
        self._run: Any = None

    def _draw_trackers(self) -> tuple[Tracker, ...]:
        rng, trackers = self._rng, []
        for unit in rng.choice(["update", "epoch", "sample"], rng.integers(1, 4), replace=False):
            reduce = str(rng.choice(["mean", "sum", "min", "max", "std", "count", "stack"]))
            patterns = ("loss", "weight_norm") if reduce == "stack" else (str(rng.choice(["", "loss", "aux", "_"])),)
            log = reduce != "stack"
            n = int(rng.integers(1, 8))
            trackers.append(
                Tracker(str(unit), n, (), patterns, reduce, log, not log or bool(rng.random() < 0.5), "propagate")
            )
        return tuple(trackers)

    def _open(self) -> None:
        self._run = self._model.front_end.Run(
            self._path,
            [tracker.config(number) for number, tracker in enumerate(self._trackers)],
            updates_per_epoch=self._per_epoch,
            effective_batch_size=self._batch_size,
            accumulation_steps=self._accumulation_steps,
        )
        self._run.start()

    def train(self) -> None:
        """Do random things until the training is over."""
        self._open()
        actions: dict[Callable[[], None], float] = {
            self._step: 10,
            self._several: 2,
            self._save: 2,
            self._stop_and_go_on: 0.7,
            self._go_back: 0.7,
            self._evaluate: 1,
            self._log: 1,
        }
        chances = np.array(list(actions.values())) / sum(actions.values())
        for _ in range(int(self._rng.integers(5, 30))):
            self._rng.choice(list(actions), p=chances)()  # type: ignore[arg-type]
        self._step()  # a state that is loaded last of all logs nothing
        while len(self._steps) % self._accumulation_steps:
            self._step()
        self._log()  # a start that wrote nothing supersedes nothing
        self._run.finish()

    def _outputs(self) -> dict[str, Any]:
        rng = self._rng
        outputs = self._model.step(len(self._steps))
        for key in self._keys:
            if rng.random() < 0.8:
                value = draw_value(rng, *KINDS[key][self._variant], "unit")
                is_own = isinstance(value, np.ndarray) and value.dtype != np.float64 and rng.random() < 0.6
                outputs[key] = to_framework(self._model.front_end.Run, value) if is_own else value
        if rng.random() < 0.3 and "" not in {pattern for tracker in self._trackers for pattern in tracker.patterns}:
            outputs["nobodys"] = {1: [None, object()]} if rng.random() < 0.5 else object()  # nothing names it
        return nest(outputs)

    def _formed(self, outputs: dict[str, Any]) -> Any:
        form = str(self._rng.choice(["dict", "dict", "namedtuple", "dataclass", "flax"]))
        return outputs if form == "dict" else as_record(outputs, form)

    def _step(self) -> None:
        outputs = self._outputs()
        self._steps.append(host(outputs))
        self._run.step(self._formed(outputs))

    def _several(self) -> None:
        """Give some steps in one call, as a list or stacked."""
        count = int(self._rng.integers(1, 5))
        many = []
        for _ in range(count):
            many.append(self._outputs())
            self._steps.append(host(many[-1]))
        if self._rng.random() < 0.5:
            self._run.step([self._formed(each) for each in many])
            return
        del self._steps[-count:]
        common = [{key: host(each)[key] for key in ("loss", "weight_norm")} for each in many]
        self._steps += common
        stacked = {key: np.stack([each[key] for each in common]) for key in ("loss", "weight_norm")}
        self._run.step({key: to_framework(type(self._run), value) for key, value in stacked.items()}, steps=count)

    def _save(self) -> None:
        self._saved.append((len(self._steps), self._run.state_dict(), self._model.save()))

    def _load(self, at: int) -> None:
        steps, state, model = self._saved[at]
        self._run.load_state_dict(state)
        self._model.load(model)
        del self._steps[steps:]
        del self._saved[at + 1 :]

    def _go_back(self) -> None:
        """Load an older state in mid-training."""
        if self._saved:
            self._load(int(self._rng.integers(len(self._saved))))

    def _stop_and_go_on(self) -> None:
        """Stop as a killed process does, and go on in another run from a saved state, or from the beginning."""
        self._run.log_writer.close()
        self._model = type(self._model)()
        self._open()
        if self._saved and self._rng.random() < 0.8:
            self._load(len(self._saved) - 1)
        else:
            self._steps, self._saved = [], []

    def _evaluate(self) -> None:
        with self._run.evaluate(f"eval-{len(self._steps)}-{self._rng.integers(10**9)}"):
            for _ in range(int(self._rng.integers(0, 3))):
                self._run.step({"loss": 1.0, "field": np.ones(3, np.float32)})
            self._run.log({"own": 1.0})

    def _log(self) -> None:
        self._run.log({f"own/{self._rng.integers(10**9)}": 1.0})

    @property
    def schedule(self) -> Schedule:
        """Return what the run was given, less what it went back behind."""
        n = self._accumulation_steps
        updates = tuple(tuple(self._steps[at : at + n]) for at in range(0, len(self._steps), n))
        return Schedule(updates, n, self._per_epoch, self._batch_size, self._trackers)

    def result(self) -> Result:
        """Return what the run holds, less the loop's own values and its evaluations'."""
        read = read_run(self._path)
        assert read.problems == []
        entries = []
        for entry in read.iter_entries():
            entry = {key: value for key, value in entry.items() if not key.startswith(("own/", "eval-"))}
            if len(entry) > 3:
                entries.append(entry)
        kept = [file for file in read.arrays if not file.interval.rpartition("/")[2].startswith("eval-")]
        files = {f"{file.interval}/{file.iteration}": file.load() for file in kept}
        return Result(entries, files)
