"""What docs/scale.md says comes of a script, and what many processes add is exact."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks.scale import CONFIGS, KEYS, sent, simulate

PAGE = (Path(__file__).parents[1] / "docs" / "scale.md").read_text(encoding="utf-8")


def test_what_processes_add_is_exact() -> None:
    found = simulate(64)
    assert (found.numbers, found.wrong) == (5 * KEYS, 0)


def test_the_page_has_the_bytes_that_are_sent() -> None:
    for name, reductions in CONFIGS.items():
        (told,) = set(re.findall(rf"^\| {name} \| [\d,]+ \| ([\d,]+) \|", PAGE, re.MULTILINE))
        assert told == f"{sum(sent(reductions)):,}"
