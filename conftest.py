"""Add `--full`, and the hypothesis profiles."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import hypothesis
import pytest

# eight devices, for what runs on several, and compilation in one piece, for splitting it costs a fifth more;
# to be said before anything loads JAX
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8 --xla_cpu_parallel_codegen_split_count=1")
# a thread each: tests run side by side, and threads that wait for one another cost more than they bring
os.environ.setdefault("OMP_NUM_THREADS", "1")

_COMPILED = "COMPILED_FOR_TESTS"  # names the folder to the processes that run tests, and to none that these start

hypothesis.settings.register_profile("default", deadline=None, derandomize=False)
hypothesis.settings.register_profile("full", deadline=None, derandomize=False, max_examples=2000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the slow tests too, and the bigger sweeps of the others")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "default")
    folder = os.environ.pop(_COMPILED, None)
    if folder is None:
        folder = tempfile.mkdtemp(prefix="compiled-for-tests-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    if config.getoption("numprocesses", None):
        os.environ[_COMPILED] = folder
    else:
        _reuse_compiled(folder)


def _reuse_compiled(folder: str) -> None:
    """Let what one test has compiled serve the others: compiling is most of what they do."""
    import jax

    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: give --full"))
    left_out = set(_beyond_sweeps(items))
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]


def _beyond_sweeps(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Yield what tests marked `sweep` leave to `--full`: the later seeds, or, without seeds, any cases, always the same."""
    sweeps: dict[str, list[pytest.Item]] = {}
    for item in items:
        if (marker := item.get_closest_marker("sweep")) is None:
            continue
        seed = item.callspec.params.get("seed")  # type: ignore[attr-defined]
        if seed is None:
            sweeps.setdefault(item.nodeid.partition("[")[0], []).append(item)
        elif seed >= marker.args[0]:
            yield item
    for name, cases in sweeps.items():
        kept = cases[0].get_closest_marker("sweep").args[0]  # type: ignore[union-attr]
        yield from random.Random(name).sample(cases, max(0, len(cases) - kept))


@pytest.fixture(autouse=True)
def _no_update_is_under_way() -> None:
    """Let each test begin with an update: of Accelerate's state there is one in a process, as the last loop left it."""
    accelerate = sys.modules.get("accelerate.state")
    if accelerate is not None and accelerate.GradientState._shared_state:
        accelerate.GradientState()._set_sync_gradients(True)


@pytest.fixture(autouse=True, scope="module")
def _what_a_module_traced_goes_with_it() -> Iterator[None]:
    """Let JAX keep no module's traces: they are most objects of a process, and each collection of garbage visits all.

    What was compiled stays in the folder. A `Trainer` collects at each training, and so do the tests of memory.
    """
    yield
    if (jax := sys.modules.get("jax")) is not None:
        jax.clear_caches()


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Tell whether the bigger sweeps are asked for."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def sized(request: pytest.FixtureRequest) -> Iterator[Callable[..., Iterator[Any]]]:
    """Return what counts a test's trials, by a plural, as they are over: `for trial in sized(range(200), "kills")`."""
    counts: dict[str, int] = {}

    def count(items: Iterable[Any], what: str) -> Iterator[Any]:
        for each in items:
            yield each
            counts[what] = counts.get(what, 0) + 1

    yield count
    request.node.user_properties.extend(counts.items())
