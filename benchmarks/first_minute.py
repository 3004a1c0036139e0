"""Time the first minute: from `pip install` of the wheel to a curve on the screen, in an environment that has nothing yet.

python -m benchmarks.first_minute            # JAX
python -m benchmarks.first_minute torch

It trains the README's own lines. What pip downloads is downloaded before, and timed by itself: that depends on the network.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def timed(what: str, command: Sequence[str | Path], directory: Path) -> tuple[float, str]:
    """Run a command, print how long it took, and return that and its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    start = time.perf_counter()
    done = subprocess.run(
        list(map(str, command)), cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{what} failed:\n{done.stdout}{done.stderr}")
    print(f"{seconds:6.1f} s  {what}", flush=True)
    return seconds, done.stdout


def lines_of_the_readme(framework: str) -> str:
    """Return the first program of the README that imports the framework's front-end."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if f"from noether_{framework} import Run" in block)


def main() -> None:
    """Build, download, install, train, look."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("framework", nargs="?", choices=["jax", "torch"], default="jax")
    framework = parser.parse_args().framework
    with tempfile.TemporaryDirectory() as made:
        directory = Path(made)
        python, wheels = directory / "environment" / "bin" / "python", directory / "wheels"
        build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels]
        timed("build the wheel", build, ROOT)
        (wheel,) = wheels.glob("*.whl")
        constraint = ["--quiet", "--constraint", ROOT / "constraints.txt"]
        package = f"{wheel}[{framework}]"
        timed(
            f"download what [{framework}] needs",
            [sys.executable, "-m", "pip", "download", *constraint, "-d", wheels, package],
            directory,
        )
        print("from here on, without a network:")
        commands = {
            "python -m venv environment": [sys.executable, "-m", "venv", "environment"],
            f"pip install '{wheel.name}[{framework}]'": [
                *(python, "-m", "pip", "install", "--no-index", "--find-links", wheels),
                *constraint,
                package,
            ],
            "python train.py": [python, "-W", "error", "train.py"],
            f"noether-parity show runs/{framework}": [python.parent / "noether-parity", "show", f"runs/{framework}"],
        }
        (directory / "train.py").write_text(lines_of_the_readme(framework), encoding="utf-8")
        steps = [timed(what, command, directory) for what, command in commands.items()]
        print(f"{sum(seconds for seconds, _ in steps):6.1f} s  from nothing to this:\n\n{steps[-1][1]}")


if __name__ == "__main__":
    main()
