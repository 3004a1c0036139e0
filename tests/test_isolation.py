from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from noether_core import LogWriter, UpdateCounter, read_run
from noether_core.emit.arrays import write_arrays

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for package in ROOT.glob("noether_*/") for path in package.rglob("*.py"))
FRAMEWORKS = ["jax", "jaxlib", "flax", "optax", "torch", "tensorboardX", "tensorboard", "wandb", "mlflow", "trackio"]

# Make the packages named in the first argument look absent, and note each attempt to import one.
BLOCKER = """
import sys

class Blocker:
    tried = []

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            self.tried.append(name)
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""

# End the process as soon as it makes a socket, asks for a name, or unpickles.
GUARD = """
import os, sys

def guard(event, arguments):
    if event.startswith("socket.") or event == "pickle.find_class":
        print("guard:", event, file=sys.stderr, flush=True)
        os._exit(3)

import socket
sys.addaudithook(guard)
"""


def python(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error"}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with a run, a config and an example of update outputs, made without a framework."""
    directory = tmp_path_factory.mktemp("isolation")
    counter = UpdateCounter()
    writer = LogWriter(directory / "run", update_counter=counter)
    counter.next_update()
    writer.add_scalar("loss/U1", 0.5)
    writer.close()
    write_arrays(directory / "run" / "update_outputs" / "U1" / "E0_U1_S1.safetensors", {"field": np.ones(3)})
    (directory / "config.yaml").write_text("callbacks: [{every_n_updates: 1, keys: [loss]}]", encoding="utf-8")
    (directory / "outputs.json").write_text(json.dumps({"loss": 0.5}), encoding="utf-8")
    return directory


CORE_WORK = {
    "import noether_core": "import noether_core; print(noether_core.__name__)",
    "import every module of it": """
import importlib, pkgutil, noether_core
for module in pkgutil.walk_packages(noether_core.__path__, "noether_core."):
    print(importlib.import_module(module.name))
""",
    "show": "from noether_core.cli import app; app(['show', sys.argv[2] + '/run'], standalone_mode=False)",
    "explain": "from noether_core.cli import app; app(['explain', sys.argv[2] + '/config.yaml', sys.argv[2] + '/outputs.json'],"
    " standalone_mode=False)",
}


@pytest.mark.parametrize("work", CORE_WORK)
def test_the_core_never_asks_for_a_framework(work: str, directory: Path) -> None:
    done = python(f"{BLOCKER}\n{CORE_WORK[work]}\nprint('tried', Blocker.tried)", ",".join(FRAMEWORKS), str(directory))
    assert done.returncode == 0, done.stderr
    assert "loss/U1" in done.stdout or "noether_core" in done.stdout
    assert done.stdout.splitlines()[-1] == "tried []"


def test_the_blocker_sees_an_import() -> None:
    done = python(f"{BLOCKER}\ntry: import torch\nexcept ImportError: print('tried', Blocker.tried)", "torch")
    assert done.stdout.splitlines() == ["tried ['torch']"]


JAX = """
import jax, jax.numpy as jnp
from noether_jax import Run

@jax.jit
def train_step(w):
    loss, gradient = jax.value_and_grad(lambda w: jnp.sum((w - 1) ** 2))(w)
    return w - 0.25 * gradient, {"loss": loss, "field": w}
"""
TORCH = """
import torch
from noether_torch import Run

def train_step(w):
    w = w.detach().requires_grad_()
    loss = ((w - 1) ** 2).sum()
    loss.backward()
    return w - 0.25 * w.grad, {"loss": loss, "field": w}
"""
LOOP = """
callbacks = [
    {"every_n_updates": 2, "keys": ["loss"]},
    {"every_n_updates": 2, "keys": ["field"], "reduce": "last", "log_output": False, "save_output": True},
]
with Run(sys.argv[2], callbacks=callbacks, trackers=sys.argv[3:], record=sys.argv[2] + "/recording.safetensors") as run:
    for _ in range(4):
        w, outputs = train_step(w)
        run.step(update_outputs=outputs)
"""
LOOPS = {
    "jax": f"{JAX}\nw = jnp.zeros(2)\n{LOOP}",
    "torch": f"{TORCH}\nw = torch.zeros(2)\n{LOOP}",
}


@pytest.mark.parametrize("trackers", [[], ["console", "tensorboard"]], ids=["plain", "tracked"])
@pytest.mark.parametrize(("frontend", "blocked"), [("jax", "torch"), ("torch", "jax,jaxlib,flax,optax")])
def test_a_front_end_trains_without_the_other_framework(
    frontend: str, blocked: str, trackers: list[str], tmp_path: Path
) -> None:
    done = python(f"{BLOCKER}\n{LOOPS[frontend]}", blocked, str(tmp_path), *trackers)
    assert done.returncode == 0, done.stderr
    run = read_run(tmp_path)
    assert [point.value for point in run.series["loss/U2"]] == [1.25, 0.078125]  # losses: 2, 1/2, 1/8, 1/32
    assert [file.load()["field"].tolist() for file in run.arrays] == [[0.5, 0.5], [0.875, 0.875]]
    assert (tmp_path / "tensorboard").exists() == bool(trackers)


@pytest.mark.parametrize(("frontend", "framework"), [("noether_jax", "torch"), ("noether_torch", "jax")])
def test_a_front_end_never_asks_for_the_other_framework(frontend: str, framework: str) -> None:
    done = python(f"{BLOCKER}\nimport {frontend}\nprint('tried', Blocker.tried)", f"{framework},tensorboardX")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["tried []"]


@pytest.mark.parametrize("work", ["noether_core", "noether_jax", "noether_torch", "noether_core.cli", *LOOPS])
def test_no_socket_is_opened_and_nothing_is_unpickled(work: str, tmp_path: Path) -> None:
    done = python(f"{GUARD}\n{LOOPS.get(work, f'import {work}')}", "", str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["show", "explain"])
def test_a_command_opens_no_socket_and_unpickles_nothing(command: str, directory: Path) -> None:
    done = python(f"{GUARD}\n{CORE_WORK[command]}", "", str(directory))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("offence", "event"),
    [
        ("socket.socket()", "socket.__new__"),
        ("socket.getaddrinfo('localhost', 80)", "socket.getaddrinfo"),
        ("import pickle, fractions; pickle.loads(pickle.dumps(fractions.Fraction(1)))", "pickle.find_class"),
    ],
)
def test_the_guard_sees_an_offence(offence: str, event: str) -> None:
    done = python(f"{GUARD}\n{offence}")
    assert done.returncode == 3
    assert done.stderr == f"guard: {event}\n"


UNPICKLING = {"torch.load", "torch.save", "torch.package", "jnp.load", "jnp.save", "yaml.load", "yaml.load_all"}
UNPICKLING |= {"yaml.unsafe_load", "yaml.full_load", "np.fromfile", "np.memmap", "eval", "exec"}


def offences(source: str) -> Iterator[str]:
    """Yield what in a module's source may unpickle, or runs data as code. `make lint` refuses an import of a pickler."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            yield from sorted({module + alias.name for alias in node.names} & UNPICKLING)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).replace("numpy.", "np.")
            allowed = [ast.unparse(word.value) for word in node.keywords if word.arg == "allow_pickle"]
            may_unpickle = called == "np.load" and (not allowed or len(node.args) > 1)
            if called in UNPICKLING or may_unpickle or set(allowed) - {"False"}:
                yield ast.unparse(node)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_of_ours_can_unpickle(path: Path) -> None:
    assert list(offences(path.read_text(encoding="utf-8"))) == []


def test_all_packages_are_scanned() -> None:
    packages = {path.relative_to(ROOT).parts[0] for path in SOURCES}
    assert packages == {"noether_core", "noether_jax", "noether_parity", "noether_torch"}
    assert ROOT / "noether_core" / "emit" / "arrays.py" in SOURCES


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.package", 1),
        ("def f():\n    from torch import load", 1),
        ("torch.load(path, weights_only=True)", 1),
        ("numpy.load(path, allow_pickle=True)", 1),
        ("np.load(path, allow_pickle=flag)", 1),
        ("np.load(path)", 1),
        ("np.load(path, None, True, allow_pickle=False)", 1),
        ("yaml.load(text, Loader=yaml.UnsafeLoader)", 1),
        ("np.load(path, allow_pickle=False); yaml.safe_load(text); json.loads(text)", 0),
    ],
)
def test_the_scan_finds_what_it_should(source: str, found: int) -> None:
    assert len(list(offences(source))) == found
