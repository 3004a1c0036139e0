from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

import noether_jax
import noether_torch
from noether_core import LogWriter, NoetherError, RunFormatError, UpdateCounter, read_run
from noether_core.callbacks import CallbackBase
from noether_core.config.base import CallbackBaseConfig
from noether_core.emit.arrays import read_arrays, write_arrays
from noether_core.errors import HookOrderError, MissingKeyError, UpdateOutputError
from noether_core.parity import OutputRecorder, differing_files, read_recording, replay
from noether_core.run import Run

FRONTENDS: dict[str, type[Run]] = {"jax": noether_jax.Run, "torch": noether_torch.Run}
INTS = [np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64]
FLOATS = [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]
DTYPES = [np.bool_, *INTS, *FLOATS]
LOSS = [{"every_n_updates": 1, "keys": ["loss"]}]

frontends = pytest.mark.parametrize("run_class", FRONTENDS.values(), ids=FRONTENDS)


def bits(shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    """Return an array of random bits; NaN payloads and subnormals are among them."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    data = np.random.default_rng(size).integers(0, 2 if dtype is np.bool_ else 256, size, np.uint8).tobytes()
    return np.frombuffer(data, dtype).reshape(shape)


def given(run_class: type[Run], outputs: Any) -> Any:
    """Return outputs with each NumPy array as an array of the framework."""
    if isinstance(outputs, dict):
        return {key: given(run_class, value) for key, value in outputs.items()}
    return run_class.backend.from_numpy(outputs) if isinstance(outputs, np.ndarray) else outputs


def record(path: Path, run_class: type[Run], steps: list[Any]) -> Path:
    """Record steps in a run of their own, and return the file."""
    file = path / f"{run_class.backend.name}.safetensors"
    with run_class(path / run_class.backend.name, callbacks=[], record=file) as run:
        for outputs in steps:
            run.step(update_outputs=given(run_class, outputs))
    return file


def exact(value: Any) -> Any:
    """Return what two values share only if they are the same to the bit, in type and dtype too."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return type(value), struct.pack("d", value) if isinstance(value, float) else value


def exactly(steps: Any) -> list[Any]:
    return [step and [(key, exact(value)) for key, value in step.items()] for step in steps]


# ------------------------------------------------------------------ what comes back


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: np.dtype(dtype).name)
@frontends
def test_every_dtype_comes_back_bit_by_bit(tmp_path: Path, run_class: type[Run], dtype: Any) -> None:
    step = {str(shape): bits(shape, dtype) for shape in [(), (0,), (5,), (2, 3, 4), (3, 0)]}
    assert exactly(read_recording(record(tmp_path, run_class, [step]))) == exactly([step])


@pytest.mark.parametrize("dtype", ["float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"])
@frontends
def test_rare_dtypes_come_back_too(tmp_path: Path, run_class: type[Run], dtype: str) -> None:
    step = {"v": bits((4,), getattr(ml_dtypes, dtype))}
    assert exactly(read_recording(record(tmp_path, run_class, [step]))) == exactly([step])


@frontends
def test_values_on_the_host_come_back(tmp_path: Path, run_class: type[Run]) -> None:
    numbers = [True, False, 0, -(2**63), 2**63 - 1, 0.0, -0.0, 0.1, math.inf, math.nan, 5e-324]
    scalars = [np.float32(0.1), np.float64(0.1), np.int64(-1), np.uint64(2**64 - 1), np.bool_(True), np.float16(1)]
    outputs = {f"{at}": value for at, value in enumerate([*numbers, *scalars])}
    (step,) = read_recording(record(tmp_path, run_class, [outputs]))
    assert step is not None
    expected = [*numbers, *map(np.asarray, scalars)]  # a NumPy scalar is an array of no dimensions
    assert [exact(value) for value in step.values()] == [exact(value) for value in expected]


@frontends
def test_nested_dicts_are_flattened_and_none_is_absent(tmp_path: Path, run_class: type[Run]) -> None:
    steps = [
        {"loss": 1.0, "layer": {"b": {"std": 2.0, "mean": None}, "a": 3.0}},
        None,
        {},
        {"layer": None},
        {"loss": 4.0},
    ]
    read = list(read_recording(record(tmp_path, run_class, steps)))
    assert read == [{"loss": 1.0, "layer/b/std": 2.0, "layer/a": 3.0}, None, None, None, {"loss": 4.0}]


@frontends
def test_a_list_of_dicts_is_that_many_steps(tmp_path: Path, run_class: type[Run]) -> None:
    with run_class(tmp_path / "run", callbacks=LOSS, accumulation_steps=2, record=tmp_path / "r") as run:
        run.step(update_outputs=[{"loss": 1.0}, None, {"loss": 2.0}, {"loss": 3.0}])
    assert list(read_recording(tmp_path / "r")) == [{"loss": 1.0}, None, {"loss": 2.0}, {"loss": 3.0}]


def test_the_order_of_the_keys_is_kept(tmp_path: Path) -> None:
    keys = [f"{(7919 * at) % 10_007}" for at in range(10_007)]
    assert keys != sorted(keys)
    (step,) = read_recording(record(tmp_path, noether_torch.Run, [dict.fromkeys(keys, 1)]))
    assert step is not None
    assert list(step) == keys


def test_a_key_may_be_any_text(tmp_path: Path) -> None:
    keys = ["", "a/b", "0/0a/x", "accumulation_steps", "__metadata__", "größe 🧪", "line\nbreak", "nul\0"]
    (step,) = read_recording(record(tmp_path, noether_torch.Run, [dict.fromkeys(keys, 1.5)]))
    assert step == dict.fromkeys(keys, 1.5)


def test_a_training_without_steps_is_a_recording_without_steps(tmp_path: Path) -> None:
    assert list(read_recording(record(tmp_path, noether_torch.Run, []))) == []


# ------------------------------------------------------------------ both front-ends


def mixed_steps() -> Iterator[Any]:
    generator = np.random.default_rng(5)
    for at in range(12):
        field = generator.normal(size=(3, 4)).astype(np.float32)
        arrays = {np.dtype(dtype).name: bits((at % 3 + 1,), dtype) for dtype in DTYPES}
        yield (
            None if at == 5 else {"loss": field[0, 0].reshape(()), "field": field, "lr": 0.1 / (at + 1), "all": arrays}
        )


def test_both_front_ends_write_the_same_bytes(tmp_path: Path) -> None:
    files = [record(tmp_path, run_class, list(mixed_steps())) for run_class in FRONTENDS.values()]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len(read_arrays(files[0])) == 11 * (3 + len(DTYPES)) + 1


def test_a_replay_gives_the_files_of_the_training_in_both_front_ends(tmp_path: Path) -> None:
    callbacks = [
        {"every_n_updates": 2, "keys": ["loss", "lr"], "patterns": ["all/"], "reduce": ["mean", "std", "max"]},
        {"every_n_epochs": 1, "keys": ["field"], "reduce": "last", "log_output": False, "save_output": True},
    ]
    settings: dict[str, Any] = {"updates_per_epoch": 3, "accumulation_steps": 2, "effective_batch_size": 4}
    with noether_jax.Run(tmp_path / "trained", callbacks, **settings, record=tmp_path / "r") as run:
        for outputs in mixed_steps():
            run.step(update_outputs=given(noether_jax.Run, outputs))
    for name, run_class in FRONTENDS.items():
        again = tmp_path / f"{name}.safetensors"
        replay(tmp_path / "r", run_class(tmp_path / name, callbacks, **settings, record=again))
        assert differing_files(tmp_path / "trained", tmp_path / name) == ([], 3)  # the log, and two epochs' arrays
        assert again.read_bytes() == (tmp_path / "r").read_bytes()


@frontends
def test_a_replay_hands_over_the_framework_s_own_arrays(tmp_path: Path, run_class: type[Run]) -> None:
    class Types(CallbackBase):
        seen: list[Any]

        def track_after_accumulation_step(self, *, update_counter: Any, update_outputs: Any = None, **_: Any) -> None:
            self.seen = [(type(value), getattr(value, "dtype", None)) for value in update_outputs.values()]

    step = {"array": np.ones(2), "short": np.ones((), ml_dtypes.bfloat16), "scalar": np.int64(1), "number": 1.0}
    file = record(tmp_path, run_class, [step])
    callback = Types(CallbackBaseConfig(), log_writer=LogWriter(update_counter=UpdateCounter()))
    replay(file, run_class(tmp_path / "again", callbacks=[callback]))
    own, float64, bfloat16, int64 = {
        "JAX": (jax.Array, np.float64, ml_dtypes.bfloat16, np.int64),
        "PyTorch": (torch.Tensor, torch.float64, torch.bfloat16, torch.int64),
    }[run_class.backend.name]
    assert [dtype for _, dtype in callback.seen] == [float64, bfloat16, int64, None]
    assert [issubclass(found, own) for found, _ in callback.seen] == [True, True, True, False]


@frontends
@pytest.mark.parametrize("scalar", [np.float32(0.1), np.float64(0.1), np.int8(-1), np.bool_(True)], ids=repr)
def test_a_numpy_scalar_becomes_an_array_of_the_framework(run_class: type[Run], scalar: np.generic) -> None:
    array = run_class.backend.from_numpy(scalar)  # type: ignore[arg-type]
    (back,) = run_class.backend.to_numpy([array])
    assert exact(back) == exact(np.asarray(scalar))


def test_a_bfloat16_scalar_becomes_a_tensor() -> None:
    tensor = noether_torch.Run.backend.from_numpy(ml_dtypes.bfloat16(1.5))
    assert (tensor.dtype, tensor.shape, tensor.item()) == (torch.bfloat16, (), 1.5)


# ------------------------------------------------------------------ when the file appears


def test_the_file_appears_only_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "r.safetensors"
    with noether_torch.Run(tmp_path / "run", callbacks=LOSS, record=file) as run:
        for at in range(3):
            run.step(update_outputs={"loss": torch.tensor(float(at))})
            assert not file.parent.exists()
    assert list(file.parent.iterdir()) == [file]


def test_what_was_recorded_before_the_loop_broke_is_kept(tmp_path: Path) -> None:
    def train() -> None:
        with noether_torch.Run(tmp_path / "run", callbacks=LOSS, record=tmp_path / "r") as run:
            run.step(update_outputs={"loss": 1.0})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert list(read_recording(tmp_path / "r")) == [{"loss": 1.0}]


@frontends
def test_a_value_is_taken_at_the_call(tmp_path: Path, run_class: type[Run]) -> None:
    host = np.ones(3)
    tensor = torch.ones(3)
    with run_class(tmp_path / "run", callbacks=[], record=tmp_path / "r") as run:
        if run_class is noether_torch.Run:
            run.step(update_outputs={"v": tensor, "host": host})
        else:
            donated = jax.jit(lambda v: v + 1, donate_argnums=0)
            array = jax.numpy.ones(3)
            run.step(update_outputs={"v": array, "host": host})
            donated(array)
        tensor += 1
        host += 1
    (step,) = read_recording(tmp_path / "r")
    assert step is not None
    assert [value.tolist() for value in step.values()] == [[1.0] * 3] * 2


# ------------------------------------------------------------------ steps that do not count


@frontends
def test_a_step_that_a_later_callback_refuses_is_not_in_the_recording(tmp_path: Path, run_class: type[Run]) -> None:
    writer = LogWriter(update_counter=UpdateCounter())
    recorder = OutputRecorder(tmp_path / "r", backend=run_class.backend, log_writer=writer)
    with run_class(tmp_path / "run", callbacks=[recorder, *LOSS]) as run:
        run.step(update_outputs={"loss": 1.0})
        with pytest.raises(MissingKeyError):
            run.step(update_outputs={"los": 2.0, "field": np.ones(3)})
        run.step(update_outputs={"loss": 3.0})
    assert list(read_recording(tmp_path / "r")) == [{"loss": 1.0}, {"loss": 3.0}]
    assert [point.value for point in read_run(tmp_path / "run").series["loss/U1"]] == [1.0, 3.0]


UNRECORDABLE = {
    "text": ("a cat", "str 'a cat'"),
    "bytes": (b"a cat", "bytes b'a cat'"),
    "object": (Decimal(1), "decimal.Decimal"),
    "complex": (1j, "complex 1j"),
    "long int": (10**400, "an int of 1329 bits"),
    "list of text": (["a cat"], "list ['a cat']"),
    "ragged list": ([[1.0], [2.0, 3.0]], "list [[1.0], [2.0, 3.0]]"),
    "array of text": (np.array(["a"]), "<U1"),
    "array of objects": (np.array([Decimal(1)]), "object"),
    "array of complex numbers": (np.array([1j]), "complex128"),
    "array of times": (np.array(["2026-01-01"], "datetime64[D]"), "datetime64[D]"),
    "dtype that no file holds": (np.ones(2, ml_dtypes.int4), "int4"),
}


@pytest.mark.parametrize(("value", "named"), UNRECORDABLE.values(), ids=UNRECORDABLE)
@frontends
def test_what_no_file_holds_is_refused_at_its_step_and_nothing_is_lost(
    tmp_path: Path, run_class: type[Run], value: Any, named: str
) -> None:
    with run_class(tmp_path / "run", callbacks=LOSS, record=tmp_path / "r") as run:
        run.step(update_outputs={"loss": 1.0})
        with pytest.raises(UpdateOutputError) as caught:
            run.step(update_outputs={"loss": 2.0, "extra": {"odd one": value}})
        run.step(update_outputs={"loss": 3.0})
    for phrase in ("'extra/odd one'", named, "leave this one out of update_outputs"):
        assert phrase in str(caught.value)
    assert list(read_recording(tmp_path / "r")) == [{"loss": 1.0}, {"loss": 3.0}]
    assert [point.value for point in read_run(tmp_path / "run").series["loss/U1"]] == [1.0, 3.0]


def test_a_framework_s_own_complex_array_is_refused_at_its_step(tmp_path: Path) -> None:
    for run_class, value in ((noether_torch.Run, torch.ones(1) * 1j), (noether_jax.Run, jax.numpy.ones(1) * 1j)):
        with (
            run_class(tmp_path / run_class.backend.name, callbacks=[], record=tmp_path / "r") as run,
            pytest.raises(UpdateOutputError, match=r"'z' has dtype .*complex64.*A recording holds every update output"),
        ):
            run.step(update_outputs={"z": value})
        assert list(read_recording(tmp_path / "r")) == []


def test_a_name_that_no_file_holds_comes_back_and_one_that_is_too_long_is_refused_at_its_step(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path / "run", callbacks=[], record=tmp_path / "r") as run:
        run.step(update_outputs={"\ud800": 1.0, "a\nb": 2.0})
        with pytest.raises(UpdateOutputError, match=r"name"):
            run.step(update_outputs={"x" * 2**26: 1.0})
        run.step(update_outputs={"loss": 1.0})
    assert list(read_recording(tmp_path / "r")) == [{"\ud800": 1.0, "a\nb": 2.0}, {"loss": 1.0}]


def test_without_a_recording_none_of_this_matters(tmp_path: Path) -> None:
    with noether_torch.Run(tmp_path, callbacks=LOSS) as run:
        run.step(update_outputs={"loss": 1.0, **{name: value for name, (value, _) in UNRECORDABLE.items()}})
    assert read_run(tmp_path).series["loss/U1"].value[0] == 1.0


# ------------------------------------------------------------------ replays that cannot be


def test_a_second_replay_into_one_run_is_refused(tmp_path: Path) -> None:
    file = record(tmp_path, noether_torch.Run, [{"loss": 1.0}])
    run = noether_torch.Run(tmp_path / "again", callbacks=LOSS)
    replay(file, run)
    before = {path: path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()}
    with pytest.raises(HookOrderError, match="a Run is used once: make another one"):
        replay(file, run)
    assert {path: path.read_bytes() for path in (tmp_path / "again").rglob("*") if path.is_file()} == before


def test_a_replay_beyond_the_run_s_end_is_refused(tmp_path: Path) -> None:
    file = record(tmp_path, noether_torch.Run, [{"loss": 1.0}, {"loss": 2.0}])
    with pytest.raises(HookOrderError, match="where training ends"):
        replay(file, noether_torch.Run(tmp_path / "again", callbacks=LOSS, end={"update": 1}))


def arrays_of_a_recording() -> dict[str, np.ndarray[Any, Any]]:
    return {"accumulation_steps": np.array(1), "00000000/0000p/lr": np.array(0.5), "00000000/0001a/v": np.ones(2)}


LOOKALIKES: dict[str, tuple[dict[str, Any], str]] = {
    "arrays saved by a run": ({"accumulation_steps": None}, "is no recording of update outputs"),
    "count of many numbers": (
        {"accumulation_steps": np.array([1, 2])},
        r"'accumulation_steps' is int64 of shape \(2,\)",
    ),
    "count of one dimension": ({"accumulation_steps": np.array([1])}, r"shape \(1,\)"),
    "negative count": ({"accumulation_steps": np.array(-1)}, "-1; expected an int"),
    "fractional count": ({"accumulation_steps": np.array(1.5)}, "float64"),
    "bool as count": ({"accumulation_steps": np.array(True)}, "bool"),
    "count too small": ({"accumulation_steps": np.array(0)}, "'00000000/0000p/lr', but counts 0 accumulation steps"),
    "another name": ({"weights": np.ones(2)}, "'weights'; expected names like"),
    "name without a key": ({"00000000/0002a": np.ones(2)}, "'00000000/0002a'; expected names like"),
    "unknown kind": ({"00000000/0002x/w": np.ones(2)}, "'00000000/0002x/w'; expected"),
    "step that is no number": ({"step/0002a/w": np.ones(2)}, "'step/0002a/w'; expected"),
    "foreign digits": ({"٠/0002a/w": np.ones(2)}, "expected names like"),
    "number of two elements": (
        {"00000000/0002p/w": np.ones(2)},
        "Python number '00000000/0002p/w' is float64 of shape",
    ),
    "number of another dtype": ({"00000000/0002p/w": np.array(1, np.float32)}, "is float32"),
    "two outputs of one name": ({"00000000/0002a/lr": np.ones(2)}, "'lr' at position 2"),
    "two outputs of one place": ({"00000000/0001a/w": np.ones(2)}, "'w' at position 1, after 2 other outputs"),
    "an output gone": ({"00000000/0000p/lr": None}, "'v' at position 1, after 0 other outputs"),
}


@pytest.mark.parametrize(("change", "message"), LOOKALIKES.values(), ids=LOOKALIKES)
def test_a_lookalike_is_refused_and_no_run_begun(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arrays = {key: value for key, value in (arrays_of_a_recording() | change).items() if value is not None}
    write_arrays(tmp_path / "r.safetensors", arrays)
    with pytest.raises(RunFormatError, match=message) as caught:
        read_recording(tmp_path / "r.safetensors")
    assert "r.safetensors" in str(caught.value)
    assert r"give a file that Run(..., record=...) wrote" in str(caught.value)
    with pytest.raises(RunFormatError):
        replay(tmp_path / "r.safetensors", noether_torch.Run(tmp_path / "run", callbacks=[]))
    assert not (tmp_path / "run").exists()


def test_what_the_lookalikes_are_made_from_is_a_recording(tmp_path: Path) -> None:
    write_arrays(tmp_path / "r", arrays_of_a_recording())
    assert exactly(read_recording(tmp_path / "r")) == exactly([{"lr": 0.5, "v": np.ones(2)}])


def test_a_damaged_file_is_refused_with_its_name(tmp_path: Path) -> None:
    file = record(tmp_path, noether_torch.Run, [{"loss": 1.0, "v": np.ones(9)}])
    whole = file.read_bytes()
    for data in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], whole + b"x", b'{"loss": 1.0}'):
        file.write_bytes(data)
        with pytest.raises(RunFormatError, match=r"PyTorch\.safetensors"):
            read_recording(file)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        replay(tmp_path / "absent", noether_torch.Run(tmp_path / "run", callbacks=[]))


def test_what_is_saved_by_a_callback_is_no_recording(tmp_path: Path) -> None:
    callbacks = [{"every_n_updates": 1, "keys": ["loss"], "save_output": True}]
    with noether_torch.Run(tmp_path, callbacks=callbacks) as run:
        run.step(update_outputs={"loss": 1.0})
    (file,) = read_run(tmp_path).arrays
    with pytest.raises(NoetherError, match="is no recording of update outputs"):
        read_recording(file.path)


# ------------------------------------------------------------------ what a recording cannot say


@frontends
def test_last_writes_nothing_for_what_an_unfinished_update_overwrote(tmp_path: Path, run_class: type[Run]) -> None:
    callbacks = [{"every_n_updates": 9, "keys": ["loss", "rare"], "missing": "skip", "reduce": ["last", "sum"]}]
    with run_class(tmp_path, callbacks=callbacks, accumulation_steps=2) as run:
        run.step(update_outputs=[{"loss": 1.0}, {"loss": 2.0, "rare": 3.0}, {"loss": 4.0}])
    (entry,) = read_run(tmp_path).entries
    assert {key: value for key, value in entry.items() if "/" in key} == {
        "loss/sum/U9": 7.0,
        "rare/last/U9": 3.0,
        "rare/sum/U9": 3.0,
    }
