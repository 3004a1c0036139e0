"""What people do wrong in their first hour gets an answer in their own words."""

from __future__ import annotations

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from hook_cases import array, each_front_end, every
from rich.console import Console

import noether_jax
import noether_torch
from noether_core import MissingKeyError, NoetherError, read_run
from noether_core.errors import RunDirectoryError
from noether_core.inspect.show import show_run

# ---------------------------------------------------------------------- making a run


@each_front_end
def test_a_misspelt_argument_of_a_run_is_named_with_the_closest(front_end: Any, tmp_path: Path) -> None:
    class Mine(front_end.Run):  # type: ignore[misc]
        def __init__(self, *given: Any, project: str = "", **named: Any) -> None:
            super().__init__(*given, **named)

    for kind, name, meant in (
        (front_end.Run, "evry", "every"),
        (front_end.Run, "call_backs", "callbacks"),
        (Mine, "projekt", "project"),
    ):
        with pytest.raises(
            TypeError, match=rf"^{kind.__name__} got an unexpected argument '{name}'\. Did you mean '{meant}'"
        ):
            kind(tmp_path, **{name: 10})


@pytest.mark.parametrize(("name", "meant"), [("evry", "every"), ("callback", "callbacks"), ("durabilty", "durability")])
def test_a_misspelt_argument_of_a_trainers_callback_is_too(name: str, meant: str) -> None:
    from noether_torch import lightning, transformers

    for kind in (lightning.TrackOutputs, transformers.TrackOutputs):
        with pytest.raises(
            TypeError, match=rf"^TrackOutputs got an unexpected argument '{name}'\. Did you mean '{meant}'"
        ):
            kind("loss", **{name: 10})  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["", None, 3, b"run", "a\0b"])
@each_front_end
def test_a_path_that_is_none_is_refused(
    front_end: Any, path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NoetherError, match=r"Run got path=.*; expected the directory to write to") as caught:
        front_end.Run(path)
    assert ("variable that is not set" in str(caught.value)) == (path == "")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_of_a_trainers_callback_is_refused() -> None:
    from noether_torch import lightning, transformers

    for kind in (lightning.TrackOutputs, transformers.TrackOutputs):
        with pytest.raises(NoetherError, match="TrackOutputs got path=''"):
            kind("loss", "")


@pytest.mark.parametrize("below", ["", "a/b"])
def test_a_file_that_is_in_the_way_is_named(below: str, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("x")
    with pytest.raises(RunDirectoryError, match=r"afile' is a file in its way, to be moved; give the run") as caught:
        noether_torch.Run(tmp_path / "afile" / below).start()
    assert "this user" not in str(caught.value)


def test_start_returns_the_run(tmp_path: Path) -> None:
    run = noether_torch.Run(tmp_path, every=1).start()
    run.step({"loss": 1.0})
    run.finish()
    assert len(read_run(tmp_path).entries) == 1


@each_front_end
def test_a_copied_or_pickled_run_says_what_to_do(front_end: Any, tmp_path: Path) -> None:
    with front_end.Run(tmp_path / "run", every=1) as run:
        for act in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"Run '.*run': training, .* cannot be copied or pickled.*state_dict"):
                act({"run": run} if act is copy.deepcopy else run)
            with pytest.raises(TypeError, match="LogWriter, or a callback that logs to one, cannot be copied"):
                pickle.dumps(run.callbacks[0].log_writer.disk)
        run.step({"loss": 1.0})


def test_a_none_is_said_to_be_absent(tmp_path: Path) -> None:
    with (
        pytest.raises(MissingKeyError, match="One that is None counts as absent"),
        noether_torch.Run(tmp_path, ["loss"]) as run,
    ):
        run.step({"loss": None})


@each_front_end
def test_a_run_that_fails_before_anything_is_tracked_leaves_no_capsule(front_end: Any, tmp_path: Path) -> None:
    def train(path: Path, steps: int) -> BaseException:
        with pytest.raises(TypeError) as caught, front_end.Run(path, [every(1)]) as run:  # noqa: PT012
            for _ in range(steps):
                run.step({"loss": array(front_end, 1.0)})
            run.step(1, 2, 3)
        return caught.value

    error = train(tmp_path / "none", 0)
    assert not (tmp_path / "none" / "capsules").exists()
    assert getattr(error, "__notes__", []) == []
    assert "noether-parity show" in train(tmp_path / "one", 1).__notes__[0]
    assert len(list((tmp_path / "one" / "capsules").iterdir())) == 1


# ---------------------------------------------------------------------- the same directory twice


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "noether_core.emit.run_log"]


def shown(path: Path) -> str:
    console = Console(width=160, record=True, file=None)
    with console.capture() as capture:
        console.print(show_run(read_run(path)))
    return capture.get()


@each_front_end
def test_a_training_that_takes_another_ones_place_says_so_once(
    front_end: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def train(steps: int) -> None:
        with front_end.Run(tmp_path / "mine", every=1) as run:
            for _ in range(steps):
                run.step({"loss": array(front_end, 1.0)})

    with caplog.at_level(logging.WARNING):
        train(3)
        assert told(caplog) == []
        train(0)  # which logs nothing, and so takes no place
        assert told(caplog) == []
        train(2)
    assert len(told(caplog)) == 1
    for part in ("metrics/1.jsonl", "iter_superseded", "'mine_2'", "load its state"):
        assert part in told(caplog)[0]
    assert "3 entries of earlier starts are superseded" in shown(tmp_path / "mine")


def test_a_training_that_goes_on_takes_no_place(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with noether_torch.Run(tmp_path, every=1) as run:
        for _ in range(3):
            run.step({"loss": 1.0})
        state = run.state_dict()
    with caplog.at_level(logging.WARNING):
        with noether_torch.Run(tmp_path, every=1) as run:
            run.load_state_dict(state)
            run.step({"loss": 1.0})
            run.load_state_dict(state)
            run.step({"loss": 1.0})
        with noether_torch.Run(tmp_path, every=1, start={"update": 2}) as run:
            run.step({"loss": 1.0})
    assert told(caplog) == []


def test_superseded_probes_are_no_empty_table(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, callbacks=[{"kind": "ProbeCallback"}, every(1)]) as run:
        for _ in range(3):
            run.step({"loss": torch.tensor(1.0), **noether_torch.probe(run.probes_due, losses=torch.tensor(1.0))})
    assert "probes: 1 keys" in shown(tmp_path)
    with noether_torch.Run(tmp_path, [every(1)]) as run:
        run.step({"loss": torch.tensor(1.0)})
    assert "probes:" not in shown(tmp_path)


# ---------------------------------------------------------------------- pieces that nothing is found in


@pytest.mark.parametrize("form", ["optimizer", "state", "pure", "opt_state"])
def test_every_form_of_nnx_s_optimizer_is_understood(form: str) -> None:
    model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    rate = optax.cosine_decay_schedule(1e-3, 10)
    optimizer = nnx.Optimizer(model, optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate)), wrt=nnx.Param)
    state = nnx.state(optimizer)
    forms = {"optimizer": optimizer, "state": state, "pure": nnx.as_pure(state), "opt_state": optimizer.opt_state}
    params = nnx.as_pure(nnx.state(model, nnx.Param))
    keys = noether_jax.probe(params=params, opt_state=forms[form])["probes"].keys
    assert {key for key in keys if key.startswith("opt/")} == {
        "opt/count",
        *(f"opt/{field}/{name}" for field in ("mu", "nu") for name in ("bias", "weight")),
    }


NOTHING: list[tuple[str, Any]] = [
    ("batch", {}),
    ("batch", {"text": "none of these are numbers"}),
    ("activations", {}),
    ("losses", {}),
    ("updates", []),
]


@pytest.mark.parametrize(("piece", "given"), NOTHING)
@each_front_end
def test_a_piece_that_nothing_is_found_in_is_told_of(front_end: Any, piece: str, given: Any) -> None:
    with pytest.warns(UserWarning, match=rf"nothing to record in {piece}, a (dict|list); expected .*Leave out"):
        probed = front_end.probe(params={"w": array(front_end, [1.0])}, **{piece: given})
    assert probed["probes"].keys == ("param/w",)


def test_an_optimizer_s_state_that_is_not_understood_is_told_of() -> None:
    params = {"w": jnp.ones(3)}
    with pytest.warns(
        UserWarning, match=r"nothing to record in opt_state, a dict; expected optax's state, an `nnx\.Opt"
    ):
        noether_jax.probe(params=params, opt_state={"mu": {"other": np.ones(3)}})
    with pytest.warns(UserWarning, match="beside params, updates or grads"):
        noether_jax.probe(losses=0.5, opt_state=optax.adam(1.0).init(params))


def test_what_has_nothing_to_record_by_right_is_not_told_of() -> None:
    params = {"w": jnp.ones(3)}
    noether_jax.probe(params=params, opt_state=optax.sgd(1.0).init(params), buffers={})
    model = torch.nn.Linear(2, 1)
    noether_torch.probe(params=model, opt_state=torch.optim.SGD(model.parameters()), buffers=model)


# ---------------------------------------------------------------------- in JAX


def test_a_tracer_that_is_logged_is_no_array_to_be_reduced(tmp_path: Path) -> None:
    with noether_jax.Run(tmp_path, every=1) as run:

        @jax.jit
        def step(value: Any) -> Any:
            run.log({"loss": value})
            return value

        with pytest.raises(NoetherError, match="has no value yet; return it from the compiled function"):
            step(1.0)
        with pytest.raises(NoetherError, match=r"of shape \(3,\) is no single number; reduce it"):
            run.log({"loss": jnp.ones(3)})


@pytest.mark.parametrize(("lengths", "is_told"), [((5, 5), True), ((5, 3), False), ((), False)])
def test_what_a_scan_returned_without_steps_is_told_of(
    lengths: tuple[int, ...], is_told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outputs = {f"loss{at}": jnp.ones(length) for at, length in enumerate(lengths)} or {"loss": "text"}
    with caplog.at_level(logging.WARNING), noether_jax.Run(tmp_path, every=1) as run:
        run.step({"lr": 1.0, **outputs})
    assert "no single numbers" in caplog.text
    assert ("run.step(outputs, steps=5)" in caplog.text) == is_told


def test_probes_that_are_not_due_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    probes = {"kind": "ProbeCallback", "arrays": 1, "every_n_updates": 2}
    with caplog.at_level(logging.WARNING):
        for closes_over in (False, True):
            with noether_jax.Run(tmp_path / str(closes_over), callbacks=[probes]) as run:
                first = run.probes_due
                for _ in range(4):
                    due = first if closes_over else run.probes_due
                    run.step(noether_jax.probe(due, losses=jnp.float32(1.0)))
            assert len([each for each in caplog.records if "no arrays are due" in each.getMessage()]) == closes_over
    assert "no arrays are due of update 2" in caplog.text


def test_a_folder_of_runs_that_is_given_as_one_is_told_of(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path / "mine", every=1):
        pass
    with pytest.raises(NoetherError, match=r"give the directory that a Run wrote, such as '.*mine', of 1 in there"):
        read_run(tmp_path)
