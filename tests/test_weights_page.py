"""Run what stands in docs/weights.md."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import yaml

from noether_core.names import read_mapping

PAGE = Path(__file__).parents[1] / "docs" / "weights.md"


def test_the_pages_lines_run() -> None:
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert not failed
    assert tried > 20


def test_the_pages_mapping_can_be_read() -> None:
    (text,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    rules = read_mapping(yaml.safe_load(text))
    assert len(rules) == 5
    assert rules["fc.weight"].channels == 64
    assert rules["table"].axes == (1, 0)
