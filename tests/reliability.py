"""Inject the faults that a run must survive, and write what came of it to `docs/reliability.md`.

`make reliability`, or `python -m tests.reliability [--small] [-n WORKERS] [ROW ...]`: with `--small` as `make test` does, and
the page stays as it is. Each row's tests run in a pytest of their own; sizes are what the tests counted (the fixture `sized`),
or the number of tests. The page is written after each row. A row that is not run again keeps what it had, with the revision
that it is of. Exits with 1 if a row fails or is not shown.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

from tests.reliability_rows import ROWS, Row

ROOT = Path(__file__).parents[1]
PACKAGES = ("noether_core", "noether_jax", "noether_torch")
CODE = (*PACKAGES, "tests", "parity_tests", "benchmarks", "conftest.py", "pyproject.toml", "constraints.txt")
MOST_SECONDS = 3 * 3600  # of a row's tests, or of a command
PAGE, RESULTS = ROOT / "docs" / "reliability.md", ROOT / "docs" / "reliability.json"
Result = dict[str, Any]


def missing_tests(row: Row, root: Path = ROOT) -> list[str]:
    """Return the row's tests that are not there."""
    return [test for test in row.tests if not _is_there(test, root)]


def _is_there(test: str, root: Path) -> bool:
    file, _, name = test.partition("::")
    return (root / file).is_file() and (not name or f"def {name}(" in (root / file).read_text(encoding="utf-8"))


# ------------------------------------------------------------------ running


def run_row(row: Row, *, is_small: bool, workers: int = 1) -> Result:
    """Run what shows a row; return what came of it."""
    began = time.monotonic()
    missing = missing_tests(row)
    sizes: Counter[str] = Counter()
    troubles = [f"not shown: {test} is not there" for test in missing]
    if tests := [test for test in row.tests if test not in missing]:
        options = [
            *([] if is_small else ["--full"]),
            *(["-n", str(workers), "--dist", "worksteal"] if workers > 1 else []),
        ]
        troubles += _run_tests([*options, *tests], sizes)
    for command in row.commands:
        words = (command.small if is_small else command.arguments).split()
        troubles += _run([sys.executable, "-m", *words], sizes, command.size)
    said = [f"{count:,} {'test' if (count, what) == (1, 'tests') else what}" for what, count in sizes.items()]
    is_failed = any(not each.startswith("not shown") for each in troubles)
    return {
        "result": "failed" if is_failed else "not shown" if troubles or not said else "passed",
        "troubles": troubles,
        "size": ", ".join(said),
        "seconds": round(time.monotonic() - began),
        **_circumstances(),
    }


def _run_tests(arguments: Iterable[str], sizes: Counter[str]) -> list[str]:
    """Run tests, count them, and return what is wrong."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        options = ["-p", "no:cacheprovider", f"--junitxml={report}"]
        ended = _run([sys.executable, "-m", "pytest", *options, *arguments])
        troubles = read_report(report, sizes) if report.exists() else []
    return troubles or ended


def _run(command: list[str], sizes: Counter[str] | None = None, size: str = "") -> list[str]:
    """Run a command and show what it prints; count the sizes in it, and return what is wrong with its end."""
    shown = " ".join(command[1:3])
    printed = ""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        watch = threading.Timer(MOST_SECONDS, process.kill)
        watch.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            printed += line
        watch.cancel()
    if sizes is not None:
        for found in re.findall(size, printed):
            count, _, what = found.partition(" ")
            sizes[f"{what} ({' '.join(command[2:])})"] += int(count.replace(",", ""))
    return [] if process.returncode == 0 else [f"`python {shown}` ended with {process.returncode}"]


def read_report(report: Path, sizes: Counter[str]) -> list[str]:
    """Count what a report of pytest's says was run; return what failed, and what was skipped."""
    troubles = []
    for case in ET.parse(report).iter("testcase"):
        name = f"{str(case.get('classname')).rpartition('.')[2]}::{case.get('name')}"
        if (skipped := case.find("skipped")) is not None:
            if not str(skipped.get("message")).startswith("slow:"):
                troubles.append(f"not shown: {name} was skipped: {skipped.get('message')}")
        elif case.find("failure") is not None or case.find("error") is not None:
            troubles.append(name)
        else:
            sizes["tests"] += 1
            for each in case.iter("property"):
                sizes[str(each.get("name"))] += int(str(each.get("value")))
    return troubles


def _circumstances() -> Result:
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "numpy")}
    return {
        "commit": commit(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "versions": {"python": platform.python_version(), **versions},
    }


def commit() -> str:
    """Return the revision of all that the rows depend on, with a + where it was changed since."""
    newest = _git("log", "-1", "--format=%h", "--", *CODE)
    return newest + ("+" if _git("status", "--porcelain", "--", *CODE) else "")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


# ------------------------------------------------------------------ the page

HEAD = """\
# What a run survives

`make reliability` made this page at revision {commit}, on {date}, with Python {python}, JAX {jax}, PyTorch {torch} and NumPy
{numpy}, on {cores} cores ({machine}): each fault is injected for real, into real processes and files, at the size that the
row says, which the tests counted themselves. `python -m tests.reliability ROW` runs a row again; `make test` has all of them
in small. What a run's end means for what it logged stands in [How a run ends](endings.md); what is promised of files from
strangers in [SECURITY.md](../SECURITY.md).

| | fault | what must hold | tests | size run | result | seconds |
|---|---|---|---|---|---|---|
"""


def page_of(results: Mapping[str, Result], now: Result) -> str:
    """Return the page: of each row what it came to, or that it was not run."""
    head = HEAD.format(**now, **now["versions"], cores=os.cpu_count(), machine=platform.machine())
    return head + "".join(f"| {number} | {_line(row, results.get(number), now)} |\n" for number, row in ROWS.items())


def _line(row: Row, result: Result | None, now: Result) -> str:
    shows = [f"`{test}`" for test in row.tests] + [f"`python -m {command.arguments}`" for command in row.commands]
    cells = [row.fault, row.holds, "<br>".join(shows)]
    if result is None:
        return " | ".join([*cells, "", "not run", ""])
    of = "" if result["commit"] == now["commit"] else f" (at {result['commit']}, {result['date']})"
    said = "; ".join([result["result"], *result["troubles"]]) + of
    return " | ".join([*cells, result["size"], said.replace("|", "\\|").replace("\n", " "), f"{result['seconds']:,}"])


def write_page(results: Mapping[str, Result], page: Path = PAGE, kept: Path = RESULTS) -> None:
    """Write the page, and beside it the results as they are."""
    kept.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page.write_text(page_of(results, _circumstances()), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run rows, and write the page; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability", description=__doc__)
    parser.add_argument("--small", action="store_true", help="as `make test` does; writes no page")
    parser.add_argument("-n", "--workers", type=int, default=1, help="run so many of a row's tests at once")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="numbers of rows; all by default")
    given = parser.parse_args(arguments)
    if unknown := [number for number in given.rows if number not in ROWS]:
        parser.error(f"there is no row {', '.join(unknown)}; expected some of {', '.join(ROWS)}")
    results: dict[str, Result] = {}
    if RESULTS.exists() and not given.small:
        results = {number: result for number, result in json.loads(RESULTS.read_text()).items() if number in ROWS}
    is_well = True
    for number in given.rows or ROWS:
        print(f"row {number}: {ROWS[number].fault}", flush=True)
        result = run_row(ROWS[number], is_small=given.small, workers=given.workers)
        print(
            f"row {number}: {result['result']}, {result['size']}, {result['seconds']} s",
            *result["troubles"],
            flush=True,
        )
        is_well &= result["result"] == "passed"
        results[number] = result
        if not given.small:
            write_page(results)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
