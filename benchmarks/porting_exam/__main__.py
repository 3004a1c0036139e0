"""Examine the tool that compares trainings, and write `docs/porting_exam.md`: `python -m benchmarks.porting_exam`.

`--seeds 10` also compares the correct pairs of that many seeds. `--only PATTERN` takes some bugs and their pairs, and writes no
page. `--runs FOLDER` keeps the runs there, and takes those that are there. `--results FOLDER` keeps each result in a file, and
takes those that are there of the same rules: a run that was cut off goes on, and processes with another `--only` each work for
one page. `--collect` asks nothing, and writes the page of what is in that folder.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from benchmarks.porting_exam.bug import NAMED, PAIRS, Bug, Finding, bugs
from benchmarks.porting_exam.examine import compare_correct, examine
from benchmarks.porting_exam.page import page
from benchmarks.results import Correct, kept, taken

PAGE = Path(__file__).parents[2] / "docs" / "porting_exam.md"


def main() -> None:
    """Examine bugs and correct pairs."""
    parser = argparse.ArgumentParser("python -m benchmarks.porting_exam", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1, help="of correct pairs")
    parser.add_argument("--only", default="*", help="a pattern of bugs' names, such as 'vit-*'; no page is written")
    parser.add_argument("--runs", type=Path, help="where runs are kept")
    parser.add_argument("--results", type=Path, help="keep results in this folder, and take those that are there")
    parser.add_argument("--collect", action="store_true", help="ask nothing; write the page of what --results has")
    typed = parser.parse_args()
    if typed.collect:
        if typed.results is None:
            parser.error("--collect needs --results")
        _write(*_collected(typed.results, typed.seeds), typed.seeds)
        return
    with tempfile.TemporaryDirectory() as scratch:
        runs = typed.runs or Path(scratch)
        chosen = [bug for bug in bugs() if fnmatchcase(bug.id, typed.only)]
        findings = [_finding(typed.results, runs, bug) for bug in chosen]
        names = dict.fromkeys(bug.pair.name for bug in chosen)
        correct = {name: [_correct(typed.results, runs, name, seed) for seed in range(typed.seeds)] for name in names}
    if typed.only == "*":
        _write(findings, correct, typed.seeds)


def _write(findings: Sequence[Finding], correct: Mapping[str, Sequence[Correct]], seeds: int) -> None:
    text = page(findings, correct, f"python -m benchmarks.porting_exam --seeds {seeds}")
    PAGE.write_text(text, encoding="utf-8")


def _collected(results: Path, seeds: int) -> tuple[list[Finding], dict[str, list[Correct]]]:
    found = [taken(results, bug.id, Finding) for bug in bugs()]
    correct = {name: [taken(results, f"{name}.{seed}", Correct) for seed in range(seeds)] for name in PAIRS}
    return [each for each in found if each is not None], {
        name: [each for each in of_pair if each is not None] for name, of_pair in correct.items()
    }


def _correct(results: Path | None, runs: Path, name: str, seed: int) -> Correct:
    found = kept(results, f"{name}.{seed}", Correct, lambda: compare_correct(runs, PAIRS[name], seed))
    print(f"{name}, correct, seed {seed}: {found.sentence}", flush=True)
    return found


def _finding(results: Path | None, runs: Path, bug: Bug) -> Finding:
    found = kept(results, bug.id, Finding, lambda: examine(runs, bug))
    right = found.key_right, found.cause, found.culprit_right
    print(f"{bug.id}: {right} {found.sentence} [{', '.join(found.causes[:NAMED])}] {found.culprit}", flush=True)
    return found


if __name__ == "__main__":
    main()
