"""Plant every bug, ask the tool, print what it says, and write `docs/porting_bugs.md`: `python -m benchmarks.porting_bugs`.

`--seeds 30` also compares the correct pairs of that many seeds. `--only PATTERN` takes some bugs and writes no page. `--results
FOLDER` keeps each result in a file, and takes those that are there of the same rules: a run that was cut off goes on, and
processes with another `--only` each work for one page. `--dump FOLDER` writes the recordings to files instead.
"""

from __future__ import annotations

import argparse
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from benchmarks.porting_bugs.dump import dump
from benchmarks.porting_bugs.examine import examine, examine_correct
from benchmarks.porting_bugs.families import BUGS, FAMILIES
from benchmarks.porting_bugs.findings import NAMED, Finding
from benchmarks.porting_bugs.page import page
from benchmarks.porting_bugs.record import TWINS
from benchmarks.porting_bugs.truth import Bug, Way, recipe
from benchmarks.results import Correct, kept

PAGE = Path(__file__).parents[2] / "docs" / "porting_bugs.md"


def arguments() -> argparse.Namespace:
    """Return what was typed."""
    parser = argparse.ArgumentParser("python -m benchmarks.porting_bugs", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="of correct pairs, for each family")
    parser.add_argument("--only", default="*", help="a pattern of bugs' names, such as 'cnn-*'; no page is written")
    parser.add_argument("--device", default="cpu", help="where PyTorch trains; JAX has a default device of its own")
    parser.add_argument("--results", type=Path, help="keep results in this folder, and take those that are there")
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
    correct: dict[str, list[Correct]] = {}
    for way in [way for name in families for way in (Way(name, recipe()), *FAMILIES[name].ways)]:
        correct[way.id] = [_correct(typed.results, way, seed) for seed in range(typed.seeds)]
    findings = [_finding(typed.results, bug) for bug in bugs]
    command = f"python -m benchmarks.porting_bugs --seeds {typed.seeds}"
    text = page(findings, correct, TWINS, command)
    print(text)
    if typed.only == "*":
        PAGE.write_text(text, encoding="utf-8")


def _correct(results: Path | None, way: Way, seed: int) -> Correct:
    found = kept(results, f"{way.id}.{seed}", Correct, lambda: examine_correct(way, seed))
    print(f"{way.id}, correct, seed {seed}: {found.sentence}", flush=True)
    return found


def _finding(results: Path | None, bug: Bug) -> Finding:
    found = kept(results, bug.id, Finding, lambda: examine(bug))
    right = found.key_right, found.cause_place, found.culprit_right
    print(f"{bug.id}: {right} {found.sentence} [{', '.join(found.causes[:NAMED])}] {found.culprit}", flush=True)
    return found


if __name__ == "__main__":
    main()
