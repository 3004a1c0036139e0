"""Run what stands in docs/weights.md."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import yaml
from layer_cases import TABLE

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


def test_the_page_lists_what_is_tried() -> None:
    """Its rows are those of the layers that `test_names_layers.py` draws, and one of `test_names_models.py`."""
    table = PAGE.read_text(encoding="utf-8").partition("| PyTorch | Flax |\n|---|---|\n")[2].partition("\n\n")[0]
    wanted = [f"| {torch} | {flax} |" for torch, flax, _ in TABLE]
    assert table.splitlines() == [*wanted, "| a linear layer `qkv`, or three | three, or one |"]
