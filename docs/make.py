"""Make the pages' outputs and pictures again, for `make docs`.

A page that says `python -m examples.NAME` gets what `noether-parity show` prints of that example's run in its first
text block, and its curves, by `noether-parity plot`, as a picture beside it.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent


def make(page: Path) -> None:
    """Run a page's example, if it names one, and put what came of it into the page."""
    text = page.read_text(encoding="utf-8")
    example = re.search(r"`python -m examples\.(\w+)`", text)
    if example is None:
        return
    run = f"runs/{example[1]}"
    shutil.rmtree(ROOT / run, ignore_errors=True)
    subprocess.run([sys.executable, "-m", f"examples.{example[1]}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    command = str(Path(sys.executable).with_name("noether-parity"))
    plot = [command, "plot", run, "-o", str(page.with_suffix(".svg"))]
    subprocess.run(plot, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    show = [command, "show", run]
    shown = subprocess.run(show, cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8").stdout
    lines = "".join(line.rstrip() + "\n" for line in shown.splitlines())
    block = re.compile(r"```text\n.*?```", re.DOTALL)
    page.write_text(block.sub(lambda _: f"```text\n{lines}```", text, count=1), encoding="utf-8")


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]) if sys.argv[1:] else sorted(DOCS.glob("*.md")):
        make(page)
