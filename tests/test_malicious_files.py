"""Every file of a run, in turn, is a pickle, a bomb, or all header: nothing unpickles or unpacks it, and the error names it."""

from __future__ import annotations

import functools
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from damaged_runs import make_run

MOST_MEMORY = 3 * 2**28  # bytes, beyond what the libraries take
BOMB = 2**30  # bytes that a file of some MB unpacks to


class Exploit:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self._path),)


class Rebuilt:
    """Be rebuilt by NumPy's own means, which name no function of the system."""

    def __reduce__(self) -> Any:
        return np.zeros, ((2**33,),)


def zipped(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.getvalue()


@functools.cache
def zip_bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("a.npy", "w") as to:
        to.write(
            b"\x93NUMPY\x01\0v\0{'descr': '<f8', 'fortran_order': False, 'shape': (134217728,), }".ljust(127) + b"\n"
        )
        for _ in range(BOMB >> 24):
            to.write(bytes(2**24))
    return file.getvalue()


def saved(value: Any, save: Callable[..., Any]) -> bytes:
    file = io.BytesIO()
    save(value, file)
    return file.getvalue()


def objects(path: Path) -> Any:
    found = np.empty(1, object)
    found[0] = Exploit(path)
    return found


def header(size: int, data: bytes = b"") -> bytes:
    return struct.pack("<Q", size) + data


CLAIM = json.dumps({"a": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}}).encode()
# what takes the place of a file; what would be executed makes a directory
ATTACKS: dict[str, Callable[[Path], bytes]] = {
    "a pickle of protocol 0": lambda path: pickle.dumps(Exploit(path), 0),
    "a pickle of protocol 5": lambda path: pickle.dumps(Exploit(path), 5),
    "a pickle of an array": lambda _: pickle.dumps(Rebuilt()),
    "a pickled array file": lambda path: saved(
        objects(path), lambda value, file: np.save(file, value, allow_pickle=True)
    ),
    "a checkpoint of torch": lambda path: saved({"a": Exploit(path)}, torch.save),
    "an old checkpoint of torch": lambda path: saved(
        {"a": Exploit(path)}, lambda value, file: torch.save(value, file, _use_new_zipfile_serialization=False)
    ),
    "a zip bomb": lambda _: zip_bomb(),
    "a gzip bomb": lambda _: gzip.compress(bytes(BOMB >> 3), 1),
    "a zip with a way out": lambda _: zipped(**{"../../../../tmp/noether-way-out": b"x"}),
    "a header of 2**63 bytes": lambda _: header(2**63 - 1, b"{}"),
    "a header of 2**40 bytes": lambda _: header(2**40, b"{}"),
    "a header of 30 MB": lambda _: header(30_000_000, b"{" + b" " * 29_999_998 + b"}"),
    "a header of 100 MB": lambda _: header(100_000_000, b"{" + b" " * 99_999_998 + b"}"),
    "a header that claims 8 TB": lambda _: header(len(CLAIM), CLAIM),
    "tags of YAML": lambda path: f"callbacks: !!python/object/apply:os.mkdir [{path}]\n".encode(),
    "JSON that names a class": lambda _: json.dumps({"__class__": "os.mkdir", "py/reduce": ["os.mkdir"]}).encode(),
}


READ = """
import contextlib, io, json, resource, sys, time
from pathlib import Path

unpickled = []
sys.addaudithook(lambda event, arguments: event == "pickle.find_class" and unpickled.append(arguments[1:]))
import noether_core.cli
from pydantic import ValidationError
from noether_core import NoetherError, read_run
from noether_core.callbacks.record_outputs import read_recording
from noether_core.cli import main
from noether_core.config.load import load_callbacks, load_tracking
from noether_core.emit.state_file import read_state
from noether_core.emit.unmerged import read_unmerged
from noether_core.inspect.example import read_outputs
from noether_jax import Run as JaxRun
from noether_torch import Run as TorchRun

del unpickled[:]  # what the libraries did on the way


def everything(file):
    run = file
    while run.parent.name != "one":
        run = run.parent
    run, directory = run.parent / "run", run.parent
    read = read_run(run)
    said = list(read.problems)
    for each in (*read.arrays, *read.superseded_arrays):
        with ours(said):
            each.load(said)
    for reader in (load_callbacks, load_tracking, read_state, read_unmerged, recorded, read_outputs):
        with ours(said):
            reader(file)
    for command in (["show", run], ["check", run], ["merge", run], ["export", run, "--to", "csv"], ["explain", file, file]):
        sys.argv = ["noether-parity", *map(str, command)]
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text), contextlib.suppress(SystemExit):
            main()
        said.append(text.getvalue())
    for run_class in (JaxRun, TorchRun):
        with ours(said):
            run_class(directory / "again", [{"every_n_updates": 2, "keys": ["loss"]}]).load_state(file)
    return said


def recorded(file):
    return list(read_recording(file))


@contextlib.contextmanager
def ours(said):
    try:
        yield
    except (NoetherError, ValidationError) as error:
        said.append(str(error))


_, whole, most = sys.argv
everything(Path(whole))  # once with no bound, for what the libraries take
size = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + int(most),) * 2)
for line in sys.stdin:
    file = Path(line.strip())
    began = time.monotonic()
    said = everything(file)
    texts = [text.replace("\\n", "").replace(" ", "") for text in said]
    print(json.dumps({
        "named": sum(file.name in text for text in texts),
        "traceback": [text for text in said if "Traceback" in text],
        "unpickled": unpickled,
        "seconds": time.monotonic() - began,
    }), flush=True)
"""


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[subprocess.Popen[str]]:
    directory = tmp_path_factory.mktemp("whole") / "one"
    make_run(directory / "run")
    command = [sys.executable, "-W", "ignore", "-c", READ, str(directory / "run" / "config.yaml"), str(MOST_MEMORY)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OPENBLAS_NUM_THREADS": "1"}
    environment["MALLOC_ARENA_MAX"] = "1"  # else each thread that the libraries start reserves 64 MiB
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="bounds memory by RLIMIT_AS, and reads /proc")
@pytest.mark.sweep(4)
@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_is_unpickled_or_unpacked(
    attack: str, reader: subprocess.Popen[str], tmp_path: Path, full: bool, sized: Callable[..., Iterator[Any]]
) -> None:
    assert reader.stdin is not None
    assert reader.stdout is not None
    directory = tmp_path / "one"
    make_run(directory / "run")
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    of_each_kind = {"".join(file.relative_to(directory).parts[:2]) + file.suffix: file for file in files}
    data = ATTACKS[attack](tmp_path / "executed")
    for file in sized(files if full else of_each_kind.values(), "files"):
        shutil.rmtree(directory)
        make_run(directory / "run")
        file.write_bytes(data)
        print(file, file=reader.stdin, flush=True)
        line = reader.stdout.readline()
        assert line, f"the reader died of {attack} as {file}"
        found = json.loads(line)
        assert found["unpickled"] == [], file
        assert found["traceback"] == [], file
        assert found["named"] > 0, file
        assert found["seconds"] < 60, file
        assert not (tmp_path / "executed").exists(), file
    assert not Path("/tmp/noether-way-out").exists()


def test_the_attacks_work_on_who_unpickles_or_unpacks(tmp_path: Path) -> None:
    path = tmp_path / "executed"
    for load, name in [
        (pickle.loads, "a pickle of protocol 0"),
        (pickle.loads, "a pickle of protocol 5"),
        (lambda data: np.load(io.BytesIO(data), allow_pickle=True), "a pickled array file"),
        (lambda data: torch.load(io.BytesIO(data), weights_only=False), "a checkpoint of torch"),
        (lambda data: torch.load(io.BytesIO(data), weights_only=False), "an old checkpoint of torch"),
    ]:
        load(ATTACKS[name](path))
        path.rmdir()
    with zipfile.ZipFile(io.BytesIO(zip_bomb())) as archive:
        assert archive.infolist()[0].file_size > BOMB > 100 * len(zip_bomb())
