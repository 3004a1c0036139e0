"""Plant every bug, ask the tool, print what it says, and write `docs/porting_bugs.md`: `python -m benchmarks.porting_bugs`.

`--seeds 30` also compares the correct pairs of that many seeds. `--only PATTERN` takes some bugs and writes no page. `--dump
FOLDER` writes the recordings to files instead.
"""

from __future__ import annotations

import argparse
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from benchmarks.porting_bugs.dump import dump
from benchmarks.porting_bugs.examine import NAMED, examine, examine_correct
from benchmarks.porting_bugs.families import BUGS, FAMILIES
from benchmarks.porting_bugs.page import page
from benchmarks.porting_bugs.record import TWINS
from benchmarks.porting_bugs.truth import Way, recipe
from noether_core.parity.divergence import Comparison

PAGE = Path(__file__).parents[2] / "docs" / "porting_bugs.md"


def arguments() -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser("python -m benchmarks.porting_bugs", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="of correct pairs, for each family")
    parser.add_argument("--only", default="*", help="a pattern of bugs' names, such as 'cnn-*'; no page is written")
    parser.add_argument("--device", default="cpu", help="where PyTorch trains; JAX has a default device of its own")
    parser.add_argument("--dump", type=Path, help="write recordings to this folder, and compare nothing")
    return parser.parse_args()


def main() -> None:
    """Examine the bugs and the correct pairs."""
    typed = arguments()
    torch.set_default_device(typed.device)
    bugs = [bug for bug in BUGS.values() if fnmatchcase(bug.id, typed.only)]
    families = dict.fromkeys(bug.family for bug in bugs)
    if typed.dump is not None:
        dump(typed.dump, list(families))
        return
    correct: dict[str, list[Comparison]] = {}
    for way in [way for name in families for way in (Way(name, recipe()), *FAMILIES[name].ways)]:
        correct[way.id] = []
        for seed in range(typed.seeds):
            correct[way.id].append(found := examine_correct(way, seed))
            print(f"{way.id}, correct, seed {seed}: {found.sentence}", flush=True)
    findings = []
    for bug in bugs:
        findings.append(finding := examine(bug))
        right = finding.key_right, finding.cause_place, finding.culprit_right
        causes = ", ".join(cause.id for cause in finding.comparison.causes[:NAMED])
        print(f"{bug.id}: {right} {finding.comparison.sentence} [{causes}] {finding.transplanted.culprit}", flush=True)
    command = " ".join(["python -m benchmarks.porting_bugs", *sys.argv[1:]])
    text = page(findings, correct, TWINS, command)
    print(text)
    if typed.only == "*":
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
