"""List what was done wrong, and what each message must say: what arrived, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from pydantic import ValidationError

import noether_jax
import noether_torch
from noether_core import (
    ConfigFileError,
    DuplicateKeyError,
    HookOrderError,
    LogWriter,
    MissingKeyError,
    NoetherError,
    NonFiniteError,
    PeriodicCallback,
    ScheduleError,
    TrackAdditionalOutputsCallbackConfig,
    TrainingIteration,
    UpdateCounter,
    UpdateOutputError,
    read_run,
)

FRONT_ENDS = (noether_jax, noether_torch)
LOSS: dict[str, Any] = {"every_n_updates": 1, "keys": ["loss"]}

Do = Callable[[Any, Path], object]  # is given a front-end and an empty directory, and does something wrong


def case(name: str, do: Do, error: type[Exception], *told: str, only: ModuleType | None = None) -> list[Any]:
    assert len(told) >= 2, "a message says what arrived, and what to do"
    return [
        pytest.param(front_end, do, error, told, id=f"{name} ({front_end.__name__.removeprefix('noether_')})")
        for front_end in FRONT_ENDS
        if only in (None, front_end)
    ]


def run(*configs: Any, **arguments: Any) -> Do:
    return lambda front_end, path: front_end.Run(path, configs, **arguments)


def field(**fields: Any) -> Do:
    return run({**LOSS, **fields})


def file(content: bytes | None) -> Do:
    def do(front_end: Any, path: Path) -> None:
        if content is not None:
            (path / "mine.yaml").write_bytes(content)
        front_end.Run(path / "run", path / "mine.yaml")

    return do


def steps(outputs: Callable[[], Sequence[Any]], *more: Any, **fields: Any) -> Do:
    def do(front_end: Any, path: Path) -> None:
        with front_end.Run(path, [{**LOSS, **fields}, *more]) as tracked:
            for each in outputs():
                tracked.step(each)

    return do


def loss(value: Callable[[], Any], **fields: Any) -> Do:
    return steps(lambda: [{"loss": value()}], **fields)


def traced(front_end: Any, path: Path) -> None:
    with front_end.Run(path, [LOSS]) as tracked:
        jax.jit(lambda value: tracked.step({"loss": value * 2}))(1.0)


def deleted() -> jax.Array:
    array = jnp.ones(())
    array.delete()
    return array


def callback(front_end: Any, counter: UpdateCounter | None = None, **arguments: Any) -> Any:
    fields = arguments.pop("fields", {})
    arguments = {"log_writer": LogWriter(update_counter=counter or UpdateCounter()), **arguments}
    return front_end.TrackAdditionalOutputsCallback(
        TrackAdditionalOutputsCallbackConfig(**{**LOSS, **fields}), **arguments
    )


def made(**arguments: Any) -> Do:
    return lambda front_end, _path: callback(front_end, **arguments)


def accumulation_steps(*positions: tuple[int, int]) -> Do:
    """Call the hook for (accumulation_step, accumulation_steps) of one update."""

    def do(front_end: Any, _path: Path) -> None:
        counter = UpdateCounter()
        tracker = callback(front_end, counter)
        for step, many in positions:
            tracker.track_after_accumulation_step(
                update_counter=counter, update_outputs={"loss": 1.0}, accumulation_steps=many, accumulation_step=step
            )

    return do


def back_in_time(front_end: Any, _path: Path) -> None:
    tracker = callback(front_end, fields={"every_n_updates": 100})
    for update in (5, 4):
        tracker.track_after_accumulation_step(
            update_counter=UpdateCounter(TrainingIteration(update=update)), update_outputs={"loss": 1.0}
        )


def without_hook(hook: str, interval: dict[str, Any]) -> Do:
    """Train for two epochs of two updates, and leave one hook out."""

    def do(front_end: Any, _path: Path) -> None:
        counter = UpdateCounter(updates_per_epoch=2, effective_batch_size=4)
        tracker = callback(front_end, counter, fields={"every_n_updates": None, **interval})
        tracker.before_training(update_counter=counter)
        for _ in range(4):
            tracker.track_after_accumulation_step(update_counter=counter, update_outputs={"loss": 1.0})
            counter.add_samples(4)
            counter.next_update()
            if counter.is_full_epoch:
                counter.next_epoch()
            for name in {"after_update", "after_epoch"} - {hook}:
                getattr(tracker, name)(update_counter=counter)

    return do


def step_before_start(front_end: Any, path: Path) -> None:
    front_end.Run(path, [LOSS]).step({"loss": 1.0})


def step_after_finish(front_end: Any, path: Path) -> None:
    with front_end.Run(path, [LOSS]) as tracked:
        tracked.step({"loss": 1.0})
    tracked.step({"loss": 2.0})


def used_twice(front_end: Any, path: Path) -> None:
    tracked = front_end.Run(path, [LOSS])
    for _ in range(2):
        with tracked:
            tracked.step({"loss": 1.0})


def started_within(front_end: Any, path: Path) -> None:
    with front_end.Run(path, [LOSS]) as tracked:
        tracked.start()


def step_after_the_end(front_end: Any, path: Path) -> None:
    with front_end.Run(path, [LOSS], end={"update": 2}, effective_batch_size=4) as tracked:
        for _ in range(3):
            tracked.step({"loss": 1.0})


def loaded_outside(front_end: Any, path: Path) -> None:
    tracked = front_end.Run(path, [LOSS])
    tracked.load_state_dict(tracked.state_dict())


def loaded_into_another_config(front_end: Any, path: Path) -> None:
    with front_end.Run(path / "a", [LOSS]) as first:
        state = first.state_dict()
    with front_end.Run(path / "b", [{**LOSS, "every_n_updates": 2}]) as second:
        second.load_state_dict(state)


def state(change: Callable[[dict[str, Any]], Any]) -> Do:
    """Load a changed state dict of a callback that holds one step."""

    def do(front_end: Any, _path: Path) -> None:
        tracker = callback(front_end)
        tracker.track_after_accumulation_step(update_counter=UpdateCounter(), update_outputs={"loss": 1.0})
        tracker.load_state_dict(change(tracker.state_dict()))

    return do


def overriding(hook: str, base: type[PeriodicCallback] | None = None) -> Do:
    def do(front_end: Any, _path: Path) -> None:
        bases = (base or front_end.TrackAdditionalOutputsCallback,)
        subclass = type("Mine", bases, {hook: lambda _self, **_: None})
        subclass(TrackAdditionalOutputsCallbackConfig(**LOSS), log_writer=LogWriter(update_counter=UpdateCounter()))

    return do


SAVED = {**LOSS, "save_output": True}
CALLBACK = "TrackAdditionalOutputsCallback"
ONE_INTERVAL = "set exactly one of every_n_epochs, every_n_updates and every_n_samples"
EXPECTED = "a NumPy array or a Python number"

CONFIGS = [
    *case("a file that is absent", file(None), ConfigFileError, "mine.yaml' does not exist", "give a YAML file"),
    *case("a file that is no YAML", file(b"callbacks: ["), ConfigFileError, "mine.yaml' is not valid YAML", "line 1"),
    *case("a file that is no text",
          file(b"\xff\xfe\x00"), ConfigFileError, "0xff in position 0", "give a YAML text file"),
    *case("a file without a list",
          file(b"model: 3"), ConfigFileError, "its top level: 'model'", "`callbacks:` list", "add one"),
    *case("a file with text for a list", file(b"callbacks: x"), ConfigFileError, "no `callbacks:` list", "add one"),
    *case("an empty file", file(b""), ConfigFileError, "NoneType", "`callbacks:` list", "add one"),
    *case("a directory for a file", lambda f, path: f.Run(path, path), ConfigFileError,
          "directory", "give a YAML text file"),
    *case("an entry that is text",
          file(b"- loss"), ConfigFileError, "callbacks[0] in ", "str 'loss'", "expected a mapping"),
    *case("an unknown kind", file(b"- kind: noether.core.callbacks.TrackAditionalOutputs"), ConfigFileError,
          "kind 'noether.core.callbacks.TrackAditionalOutputs'", f"Did you mean '{CALLBACK}'?"),
    *case("a kind of something else",
          field(kind="EmaCallback"), ConfigFileError, "'EmaCallback'", f"known here: '{CALLBACK}'"),
    *case("an empty kind", field(kind=""), ValidationError, "kind\n", "at least 1 character"),
    *case("a config that is a number", run(LOSS, 3), ConfigFileError, "callbacks[1] is int 3", "expected a mapping"),
    *case("keys that are none", lambda f, path: f.Run(path, 5), NoetherError, "got 5 as its keys", "a list of names"),
    *case("callbacks that are none", lambda f, path: f.Run(path, callbacks=5), NoetherError, "callbacks=5",
          "a list of configs"),
    *case("a config outside of a list", lambda f, path: f.Run(path, LOSS), NoetherError,
          "'keys': ['loss']", "a list of configs"),
    *case("a typo in a field", field(every_n_update=10), ValidationError, "every_n_update\n", "is no field of", "Did you mean"),
    *case("two intervals", field(every_n_epochs=2), ValidationError,
          "got every_n_epochs=2, every_n_updates=1", ONE_INTERVAL),
    *case("no interval", run({"keys": ["loss"]}), ValidationError, "got no interval", ONE_INTERVAL),
    *case("an interval of zero", field(every_n_updates=0), ValidationError,
          "got 0", "expected at least 1"),
    *case("a negative interval", field(every_n_updates=-5), ValidationError,
          "got -5", "expected at least 1"),
    *case("an interval that is a bool", field(every_n_updates=True), ValidationError,
          "got True", "valid integer"),
    *case("an interval that is text",
          field(every_n_updates="10"), ValidationError, "got '10'", "valid integer"),
    *case("an interval that is a float", field(every_n_updates=1.0), ValidationError,
          "got 1.0", "valid integer"),
    *case("nothing to track", field(keys=[]), ValidationError, "keys and patterns are both empty", "name at least one"),
    *case("keys that are text", field(keys="loss"), ValidationError, "got the string 'loss'", "write a list: [loss]"),
    *case("patterns that are text",
          field(patterns="grad"), ValidationError, "the string 'grad'", "write a list: [grad]"),
    *case("a key that is a number", field(keys=[3]), ValidationError, "keys.0", "got 3", "valid string"),
    *case("an unknown reduction", field(reduce="median"), ValidationError, "got 'median'", "'mean', 'last'"),
    *case("a reduction twice", field(reduce=["mean", "mean"]), ValidationError,
          "['mean', 'mean']", "name each reduction once"),
    *case("no reductions", field(reduce=[]), ValidationError,
          "an empty list of reductions", "leave `reduce` out for mean"),
    *case("stacks that go nowhere", field(log_output=False, verbose=True, reduce="stack"), ValidationError,
          "stack, which is saved and never logged", "set save_output to true"),
    *case("an id that is a path", field(id="../mine"), ValidationError, "id '../mine'", "use letters, digits"),
    *case("an empty id", field(id=""), ValidationError, "id\n", "at least 1 character"),
    *case("an unknown value for missing",
          field(missing="ignore"), ValidationError, "'ignore'", "'error', 'warn' or 'skip'"),
    *case("an unknown value for nonfinite",
          field(nonfinite="stop"), ValidationError, "'stop'", "'propagate', 'skip' or 'raise'"),
    *case("text for a bool", field(verbose="yes"), ValidationError, "verbose\n", "got 'yes'", "valid boolean"),
]  # fmt: skip

OUTPUTS = [
    *case("outputs that are a number", steps(lambda: [3]), UpdateOutputError,
          "update_outputs is int", "expected a dict"),
    *case("outputs that are text", steps(lambda: ["loss"]), UpdateOutputError,
          "update_outputs is str", "expected a dict"),
    *case("outputs that are an array", steps(lambda: [np.ones(2)]), UpdateOutputError, "is ndarray", "expected a dict"),
    *case("a number in a list of steps", steps(lambda: [[{"loss": 1.0}, 3]]), UpdateOutputError,
          "is int", "expected a dict"),
    *case("outputs that are a tuple", steps(lambda: [({"loss": 1.0}, {"loss": 2.0})]), UpdateOutputError,
          "update_outputs is tuple", "write a list of dicts"),
    *case("two outputs of one key", steps(lambda: [{"a/loss": 1.0, "a": {"loss": 2.0}}], keys=["a/loss"]),
          UpdateOutputError, "'a/loss'", "rename one"),
    *case("a weight of two outputs", steps(lambda: [{"loss": 1.0, "n": 1.0, "": 2, 3: 1, "3": 2}], weight="3"),
          UpdateOutputError, "the key '3'", "rename one"),
    *case("a missing key", steps(lambda: [{"losss": 1.0, "lr": 2.0}]), MissingKeyError,
          "key 'loss' is not among", "which have 'losss', 'lr'", "Did you mean 'losss'?", "set missing: warn"),
    *case("a missing key in another case", steps(lambda: [{"Loss": 1.0}]), MissingKeyError,
          "'loss'", "Did you mean 'Loss'?"),
    *case("a key missing later on", steps(lambda: [{"loss": 1.0}, {}]), MissingKeyError,
          "which have none", "missing: skip"),
    *case("text", loss(lambda: "0.5"), UpdateOutputError, "'loss' is str '0.5'", EXPECTED, "convert it"),
    *case("text after a number", steps(lambda: [{"loss": 0.5}, {"loss": "0.5"}]), UpdateOutputError,
          "str '0.5'", EXPECTED),
    *case("bytes", loss(lambda: b"0.5"), UpdateOutputError, "'loss' is bytes b'0.5'", EXPECTED),
    *case("a ragged list", loss(lambda: [[1.0], 2.0]), UpdateOutputError, "'loss' is list [[1.0], 2.0]", "convert it"),
    *case("a tuple of text", loss(lambda: ("a",)), UpdateOutputError, "'loss' is tuple ('a',)", "convert it to an array"),
    *case("an object", loss(object), UpdateOutputError, "'loss' is object", EXPECTED),
    *case("an object that a pattern matched", loss(object, keys=None, patterns=["os"]), UpdateOutputError,
          "'loss' is object", "name only keys and patterns that fit"),
    *case("a complex number", loss(lambda: 1j), UpdateOutputError, "'loss' is complex 1j", EXPECTED),
    *case("a complex NumPy array", loss(lambda: np.ones(2, complex)), UpdateOutputError,
          "complex128", "bools, ints or floats"),
    *case("an array of objects", loss(lambda: np.array([None])), UpdateOutputError,
          "dtype object", "bools, ints or floats"),
    *case("an array of text", loss(lambda: np.array(["a"])), UpdateOutputError, "dtype <U1", "bools, ints or floats"),
    *case("a date", loss(lambda: np.datetime64("2020-01-01")), UpdateOutputError, "dtype datetime64[D]", "convert it"),
    *case("an int beyond float64", loss(lambda: 10**400), UpdateOutputError,
          "'loss' is an int of 1329 bits", "scale it"),
    *case("the last of an array, logged", loss(lambda: np.ones((2, 3)), reduce="last"), UpdateOutputError,
          "'loss' has shape (2, 3)", "reduce it with mean", "save_output: true"),
    *case("the last of an empty array, logged", loss(lambda: np.ones(0), reduce=["mean", "last"]), UpdateOutputError,
          "'loss' has shape (0,)", "reduce it with mean"),
    *case("a tensor", loss(lambda: torch.ones(())), UpdateOutputError,
          "'loss' is torch.Tensor", "expected a JAX array", "needs the callback of noether_torch", only=noether_jax),
    *case("a parameter", loss(lambda: torch.nn.Parameter(torch.ones(()))), UpdateOutputError,
          "'loss' is torch.nn.parameter.Parameter", "needs the callback of noether_torch", only=noether_jax),
    *case("a tracer", traced, UpdateOutputError,
          "'loss' is a tracer", "return the update outputs from the jitted function", only=noether_jax),
    *case("a deleted array", loss(deleted), UpdateOutputError,
          "deleted before", "or do not donate it", only=noether_jax),
    *case("a deleted array after a whole one", steps(lambda: [{"loss": jnp.ones(())}, {"loss": deleted()}]),
          UpdateOutputError, "deleted before the hook was called", "call the hook first", only=noether_jax),
    *case("a weight that is absent", loss(lambda: 1.0, weight="points"), MissingKeyError,
          "the weight 'points' is not among the update outputs, which have 'loss'", "correct the name, or return it"),
    *case("a weight of another shape", steps(lambda: [{"loss": np.ones(3), "mask": np.ones(2)}], weight="mask"),
          UpdateOutputError, "'loss' has shape (3,), and its weight 'mask' has shape (2,)", "broadcast it"),
    *case("a weight that is text", steps(lambda: [{"loss": 1.0, "mask": "all"}], weight="mask"),
          UpdateOutputError, "'mask' is str 'all'", "convert it"),
    *case("a stack of two shapes",
          steps(lambda: [{"loss": np.ones(3)}, {"loss": np.ones(4)}],
                reduce="stack", save_output=True, every_n_updates=5),
          UpdateOutputError, "'loss' has shape (4,) and had (3,) earlier", "pad it"),
    *case("a random key", loss(lambda: jax.random.key(0)), UpdateOutputError,
          "dtype key<fry>", "or do not track it", only=noether_jax),
    *case("a complex JAX array", loss(lambda: jnp.ones(2, jnp.complex64)), UpdateOutputError,
          "dtype complex64", "jnp.abs and .real", only=noether_jax),
    *case("a shape", loss(lambda: jax.ShapeDtypeStruct((), jnp.float32)), UpdateOutputError,
          "'loss' is jax.ShapeDtypeStruct", EXPECTED, only=noether_jax),
    *case("a JAX array", loss(lambda: jnp.ones(())), UpdateOutputError,
          "expected a PyTorch array", "needs the callback of noether_jax", only=noether_torch),
    *case("a tracer for PyTorch", traced, UpdateOutputError,
          "Tracer", "needs the callback of noether_jax", only=noether_torch),
    *case("a sparse tensor", loss(lambda: torch.ones(2).to_sparse()), UpdateOutputError,
          "layout torch.sparse_coo", "use .to_dense()", only=noether_torch),
    *case("a sparse tensor after a dense one",
          steps(lambda: [{"loss": torch.ones(2)}, {"loss": torch.ones(2).to_sparse()}]), UpdateOutputError,
          "layout torch.sparse_coo", "use .to_dense()", only=noether_torch),
    *case("a tensor without values", loss(lambda: torch.ones((), device="meta")), UpdateOutputError,
          "on meta", "do not track it", only=noether_torch),
    *case("a complex tensor", loss(lambda: torch.ones(2, dtype=torch.complex64)), UpdateOutputError,
          "dtype torch.complex64", ".abs() and .real", only=noether_torch),
    *case("values that are not finite", steps(lambda: [{"loss": np.array([1.0, -np.inf, np.nan])}], nonfinite="raise"),
          NonFiniteError, "'loss': 1 NaN, 0 +inf, 1 -inf of 3 values", "first at update 1, accumulation step 0",
          "nonfinite: propagate or nonfinite: skip goes on"),
    *case("values that are not finite when training ends",
          loss(lambda: float("inf"), every_n_updates=9, nonfinite="raise"),
          NonFiniteError, "'loss': 0 NaN, 1 +inf, 0 -inf of 1 values", "nonfinite: skip goes on training"),
    *case("a key that two callbacks log", steps(lambda: [{"loss": 1.0}], {"every_n_updates": 1, "patterns": ["os"]}),
          DuplicateKeyError, "'loss/U1' would be logged twice",
          f"by {CALLBACK}(every_n_updates=1, keys=['loss']",
          'log_as: "other/{key}/{interval}"'),
]  # fmt: skip

HOOKS = [
    *case("an accumulation step too many", accumulation_steps((2, 2)), HookOrderError,
          "accumulation_step=2 of accumulation_steps=2", "expected 0 to 1"),
    *case("a negative accumulation step", accumulation_steps((-1, 2)), HookOrderError,
          "accumulation_step=-1", "expected 0 to 1"),
    *case("a repeated step", accumulation_steps((0, 2), (0, 2)), HookOrderError,
          "accumulation step 0 after 0 updates came after step 0", "Count the update (next_update)"),
    *case("a step that came before", accumulation_steps((1, 2), (0, 2)), HookOrderError,
          "came after step 1 after 0 updates", "call before_training to start anew"),
    *case("an update that came before",
          back_in_time, HookOrderError, "step 0 after 4 updates", "expected later ones only"),
    *case("an update's end skipped", without_hook("after_update", {"every_n_updates": 2}), HookOrderError,
          "was at update 0 and is now at 2", "Call after_update after each update"),
    *case("a sample interval's end skipped", without_hook("after_update", {"every_n_samples": 6}), HookOrderError,
          "was at sample 0 and is now at 8", "Call after_update after each update"),
    *case("an epoch's end skipped", without_hook("after_epoch", {"every_n_epochs": 1}), HookOrderError,
          "was at epoch 0 and is now at 1", "Call after_epoch after each epoch"),
    *case("a step before the start", step_before_start, HookOrderError, "a run that is new", "write `with run:`"),
    *case("a step after the finish", step_after_finish, HookOrderError, "a run that is finished", "make a new Run"),
    *case("a run used twice", used_twice, HookOrderError, "this run is finished", "make another one"),
    *case("a run started twice", started_within, HookOrderError, "this run is training", "make another one"),
    *case("a step after the end", step_after_the_end, HookOrderError,
          "called at E0_U2_S8, where training ends", "leave the loop when run.is_finished"),
    *case("a state loaded outside", loaded_outside, HookOrderError, "a run that is new", "call it inside `with run:`"),
    *case("a state of another config", loaded_into_another_config, NoetherError,
          "the state has the callbacks", "every_n_updates=1", "this run ", "every_n_updates=2",
          "a run of the same config"),
    *case("a state that is none", state(lambda _: None), NoetherError, "the state None", "what state_dict()"),
    *case("a state of another thing", state(lambda _: {"optimizer": 1}), NoetherError,
          "a dict with 'optimizer'", "what state_dict()"),
    *case("a state of another version", state(lambda whole: {**whole, "version": 99}), NoetherError,
          "version 99", "upgrade the package"),
    *case("a state without its sums",
          state(lambda whole: {k: v for k, v in whole.items() if k != "sums"}), NoetherError,
          "incomplete or damaged (KeyError('sums'))", "load what state_dict() returned"),
    *case("a state with a key too many", state(lambda whole: {**whole, "keys": ["loss", "lr"]}), NoetherError,
          "'total' is ndarray of float64 and shape (1, 2); expected binary64s of shape (2, 2)",
          "load what state_dict() returned"),
]  # fmt: skip

CONSTRUCTION = [
    *case("an unknown argument",
          made(output_dir="x"), TypeError, "the unknown argument 'output_dir'", "it takes callback_config"),
    *case("a log writer that is none", made(log_writer=None), TypeError,
          "log_writer=None", "an object with add_scalar"),
    *case("a log writer that cannot log", made(log_writer=3), TypeError, "log_writer=3", "an object with add_scalar"),
    *case("nowhere to save", made(fields={"save_output": True}), NoetherError,
          "output_path is None", "give the run directory"),
    *case("after_update overridden", overriding("after_update"), TypeError,
          "Mine overrides after_update", "override periodic_callback or a track_* hook"),
    *case("after_epoch overridden", overriding("after_epoch", PeriodicCallback), TypeError,
          "Mine overrides after_epoch", "override periodic_callback or a track_* hook"),
    *case("a stack that is not saved", field(reduce={"lr": ["mean", "stack"]}), ValidationError,
          "reduce asks for stack, which is saved and never logged", "set save_output to true"),
    *case("epochs without their length", run({"every_n_epochs": 1, "keys": ["loss"]}), ScheduleError,
          "counts epochs, but this run has none", "give updates_per_epoch"),
    *case("two savers of one place", run(SAVED, {**SAVED, "keys": ["lr"]}), NoetherError,
          "interval U1 and id None would write the same files", "give each an id of its own"),
    *case("two savers of one id", run({**SAVED, "id": "a"}, {**SAVED, "id": "a"}), NoetherError,
          "id 'a'", "of its own"),
    *case("no accumulation steps", run(accumulation_steps=0), ScheduleError,
          "accumulation_steps=0", "an int of at least 1"),
    *case("accumulation steps that are a float", run(accumulation_steps=2.0), ScheduleError,
          "=2.0", "an int of at least 1"),
    *case("an empty batch", run(effective_batch_size=0), ScheduleError,
          "effective_batch_size=0", "an int of at least 1"),
    *case("an empty epoch", run(updates_per_epoch=0), ScheduleError, "updates_per_epoch=0", "an int of at least 1"),
    *case("an end that is a number", run(end=5), ScheduleError, "end=5", "expected one of {'epoch': n}"),
    *case("an end of two counts", run(end={"epoch": 1, "update": 5}), ScheduleError, "'update': 5}", "expected one of"),
    *case("an end of an unknown count", run(end={"epochs": 5}), ScheduleError, "end={'epochs': 5}", "{'epoch': n}"),
    *case("an end that is text", run(end={"update": "5"}), ScheduleError, "update='5'", "expected an int"),
    *case("an end in epochs without their length", run(end={"epoch": 5}), ScheduleError,
          "E5 counts epochs, but updates_per_epoch is None", "give it, or count in updates"),
    *case("an unknown tracker", run(trackers=["tensorbord"]), NoetherError,
          "tracker 'tensorbord'", "Did you mean 'tensorboard'?"),
    *case("trackers that are text",
          run(trackers="console"), NoetherError, "the string 'console'", "trackers=['console']"),
    *case("a tracker that cannot log", run(trackers=[3]), NoetherError, "tracker 3 has no log", "an object with both"),
]  # fmt: skip


@pytest.mark.parametrize(("front_end", "do", "error", "told"), [*CONFIGS, *OUTPUTS, *HOOKS, *CONSTRUCTION])
def test_a_message_says_what_arrived_and_what_to_do(
    front_end: Any, do: Do, error: type[Exception], told: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        do(front_end, tmp_path)
    assert type(caught.value) is error
    message = str(caught.value)
    assert [part for part in told if part not in message] == [], message


# ---------------------------------------------------------------------- after an error

BAD_STEPS: list[tuple[Any, type[Exception]]] = [
    ({"loss": 1000.0, "field": "text"}, UpdateOutputError),
    ({"loss": np.float32(1000.0), "field": np.full(3, 1000.0), "lr": 1j}, UpdateOutputError),
    ({"loss": np.ones(7), "field": np.ones(3), "lr": 1000.0}, UpdateOutputError),
    ({"loss": 1000.0, "fields": 1.0}, MissingKeyError),
    ({"loss": 1000.0, "field": 1.0, "a/lr": 1.0, "a": {"lr": 2.0}}, UpdateOutputError),
    (({"loss": 1000.0, "field": 1.0},), UpdateOutputError),
    (3, UpdateOutputError),
]
TRACKED = {
    "every_n_updates": 3,
    "keys": ["loss", "field"],
    "patterns": ["lr"],
    "reduce": {"loss": ["mean", "last"]},
    "save_output": True,
}


def train(front_end: Any, path: Path, bad_steps: Sequence[tuple[Any, type[Exception]]], looks: bool = False) -> Any:
    """Train for four updates of two accumulation steps, with the bad steps tried before each good one."""

    def seen() -> Any:
        return tracked.counter.cur_iteration, tracked.callbacks[0].tracked_values if looks else None

    rng = np.random.default_rng(0)
    with front_end.Run(path, [TRACKED], accumulation_steps=2, effective_batch_size=4) as tracked:
        for _ in range(8):
            before = seen()
            for outputs, error in bad_steps:
                with pytest.raises(error):
                    tracked.step(outputs)
            assert seen() == before
            good = {"loss": rng.normal(size=()), "field": rng.normal(size=5), "lr": rng.normal(size=1)}
            tracked.step(
                {key: front_end.Run.backend.from_numpy(np.asarray(value, np.float32)) for key, value in good.items()}
            )
    return tracked.log_writer.log_entries


@pytest.mark.parametrize("looks", [False, True])  # reading tracked_values settles what is pending
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_after_failed_steps_the_run_goes_on_and_none_of_them_is_half_counted(
    front_end: Any, looks: bool, tmp_path: Path
) -> None:
    clean = train(front_end, tmp_path / "clean", [])
    assert [entry["update"] for entry in clean] == [3, 4]
    assert list(clean[0])[3:] == ["loss/mean/U3", "loss/last/U3", "field/mean/U3", "lr/mean/U3"]
    assert train(front_end, tmp_path / "failed", BAD_STEPS, looks) == clean
    saved = [sorted(path.rglob("*.safetensors")) for path in (tmp_path / "clean", tmp_path / "failed")]
    assert len(saved[0]) == 2
    assert [file.read_bytes() for file in saved[0]] == [file.read_bytes() for file in saved[1]]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_after_an_interval_that_is_not_finite_the_next_one_is_right(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path, [{**LOSS, "every_n_updates": 2, "nonfinite": "raise"}]) as tracked:
        tracked.step({"loss": 1.0})
        with pytest.raises(NonFiniteError, match="first at update 2"):
            tracked.step({"loss": float("inf")})
        tracked.step({"loss": 2.0})
        tracked.step({"loss": 4.0})
    assert tracked.log_writer.log_entries == [
        {"epoch": 0, "update": 2, "sample": 2, "loss/U2": float("inf"), "loss/nonfinite/U2": 1},
        {"epoch": 0, "update": 4, "sample": 4, "loss/U2": 3.0},
    ]


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_a_state_that_was_refused_leaves_the_callback_as_it_was(front_end: Any) -> None:
    tracker = callback(front_end)
    tracker.track_after_accumulation_step(update_counter=UpdateCounter(), update_outputs={"loss": 3.0})
    for broken in (None, {}, {**tracker.state_dict(), "version": 99}, {**tracker.state_dict(), "position": None}):
        with pytest.raises(NoetherError):
            tracker.load_state_dict(broken)
        assert tracker.tracked_values == {"loss": [3.0]}


@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_what_was_logged_before_an_error_is_not_lost(front_end: Any, tmp_path: Path) -> None:
    fail = steps(lambda: [{"loss": 1.0}, {"loss": 2.0}, {"loss": 3.0}, {"lr": 4.0}], {**LOSS, "every_n_updates": 2})
    with pytest.raises(MissingKeyError):
        fail(front_end, tmp_path)
    series = read_run(tmp_path).series
    assert [(point.update, point.value) for point in series["loss/U1"]] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [(point.update, point.value) for point in series["loss/U2"]] == [(2, 1.5), (3, 3.0)]
