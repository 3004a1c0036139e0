"""Generated loops, with what real loops have: the numbers are the exact reference's, and no error is anybody else's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from parity_tests.loops import Loop
from parity_tests.reference import expected
from parity_tests.test_schedules import assert_same

PARTS = 10


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.filterwarnings("ignore:.*matched no update output.*:UserWarning")
def test_any_loop_gives_the_exact_numbers(part: int, full: bool, tmp_path: Path) -> None:
    for seed in range(part, int(os.environ.get("PARITY_LOOPS", "500" if full else "40")), PARTS):
        loop = Loop(seed, tmp_path / str(seed))
        try:
            loop.train()
            assert_same(loop.result(), expected(loop.schedule))
        except Exception as error:
            error.add_note(f"the loop's seed is {seed}")
            raise
