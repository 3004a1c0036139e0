"""Examine the tool that compares trainings, and write `docs/porting_exam.md`: `python -m benchmarks.porting_exam`.

`--seeds 10` also compares the correct pairs of that many seeds. `--only PATTERN` takes some bugs and writes no page. `--runs
FOLDER` keeps the runs there, and takes those that are there.
"""

from __future__ import annotations

import argparse
import tempfile
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.porting_exam.bug import NAMED, PAIRS, bugs
from benchmarks.porting_exam.examine import compare_correct, examine
from benchmarks.porting_exam.page import page

PAGE = Path(__file__).parents[2] / "docs" / "porting_exam.md"


def main() -> None:
    """Examine correct pairs and bugs."""
    parser = argparse.ArgumentParser("python -m benchmarks.porting_exam", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="of correct pairs")
    parser.add_argument("--only", default="*", help="a pattern of bugs' names, such as 'vit-*'; no page is written")
    parser.add_argument("--runs", type=Path, help="where runs are kept")
    typed = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = typed.runs or Path(scratch)
        chosen = [bug for bug in bugs() if fnmatchcase(bug.id, typed.only)]
        correct = {}
        for name in dict.fromkeys(bug.pair.name for bug in chosen):
            correct[name] = [compare_correct(folder, PAIRS[name], seed) for seed in range(typed.seeds)]
            for seed, found in enumerate(correct[name]):
                print(f"{name}, correct, seed {seed}: {found.sentence}", flush=True)
        findings = []
        for bug in chosen:
            findings.append(finding := examine(folder, bug))
            right = finding.key_right, finding.cause, finding.culprit_right
            named = ", ".join(cause.id for cause in finding.comparison.causes[:NAMED])
            print(f"{bug.id}: {right} {finding.comparison.sentence} [{named}] {finding.culprit}", flush=True)
    text = page(findings, correct, f"python -m benchmarks.porting_exam --seeds {typed.seeds}")
    print(text)
    if typed.only == "*":
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
