"""Add `--full`, and the hypothesis profiles."""

from __future__ import annotations

import os

import hypothesis
import pytest

# eight devices, for what runs on several; to be said before anything loads JAX
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

hypothesis.settings.register_profile("default", deadline=None, derandomize=False)
hypothesis.settings.register_profile("full", deadline=None, derandomize=False, max_examples=2000)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the slow tests too, and the bigger sweeps of the others")


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("full" if config.getoption("--full") else "default")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: give --full"))
    left_out = [item for item in items if _is_beyond_sweep(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]


def _is_beyond_sweep(item: pytest.Item) -> bool:
    marker = item.get_closest_marker("sweep")
    callspec = getattr(item, "callspec", None)
    return marker is not None and callspec is not None and bool(callspec.params["seed"] >= marker.args[0])


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Tell whether the bigger sweeps are asked for."""
    return bool(request.config.getoption("--full"))
