"""A little of `python -m tests.fuzz`, and what SECURITY.md names."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_no_drawn_file_brings_a_reader_down(full: bool) -> None:
    command = [sys.executable, "-m", "tests.fuzz", "120" if full else "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def test_every_test_that_security_md_names_is_there() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/\w+\.py)?(?:::(\w+))?`", text)
    file = ""
    found = 0
    for path, test in named:
        file = path or file
        if path or test:
            assert f"def {test}" in (ROOT / file).read_text(encoding="utf-8"), (file, test)
            found += 1
    assert found > 15
