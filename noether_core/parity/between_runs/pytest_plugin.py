"""Give a test the fixture `same_training`. pytest finds this plugin by itself once the package is installed.

def test_the_port(same_training):
    same_training("runs/torch", "runs/jax")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from noether_core.parity.divergence import Comparison


@pytest.fixture(scope="session")
def same_training() -> Callable[..., Comparison]:
    """Return a function that fails the test unless two runs are the same training; `assert_same_training` has its arguments."""

    def check(a: Any, b: Any, **options: Any) -> Comparison:
        __tracebackhide__ = True  # a failure shows the test's own line, and the message
        # here, for pytest loads this plugin also where no test wants it
        from noether_core.parity.between_runs.asserting import NotTheSameTrainingError, assert_same_training

        try:
            return assert_same_training(a, b, **options)
        except NotTheSameTrainingError as error:
            failure = str(error)
        pytest.fail(failure)

    return check
