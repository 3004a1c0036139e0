"""Build the wheel, and make environments in which it is installed as a user installs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def called(command: Sequence[str | Path], directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command outside of the sources, which nothing puts on its path; its output is text."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(part) for part in command],
        cwd=directory,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=1800,
    )


def built_wheel(directory: Path) -> Path:
    """Return the wheel, built without a network by the hatchling of this environment."""
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = directory.glob("*.whl")
    return wheel


def python_of(environment: Path) -> Path:
    """Return an environment's interpreter."""
    return environment / "bin" / "python"


def behind(environment: Path) -> None:
    """Give an environment the packages of this one too, after its own: what a user has, without installing it again."""
    (packages,) = (environment / "lib").glob("python*/site-packages")
    here = [path for path in sys.path if path.endswith("site-packages")]
    (packages / "behind.pth").write_text("\n".join(here), encoding="utf-8")


def interpreter(version: str) -> Path | None:
    """Return a Python of a version, such as `3.12`: on the PATH, or of pyenv's; None if this machine has none."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" == version:
        return Path(sys.executable)
    known = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = shutil.which(f"python{version}")
    candidates = [*([found] if found else []), *sorted(known.glob(f"{version}.*/bin/python"), reverse=True)]
    for candidate in candidates:
        done = subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True, check=False)
        if done.returncode == 0:
            return Path(candidate)
    return None


def snippets(page: Path) -> Iterator[str]:
    """Yield a page's fenced Python programs: those that import something of ours."""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        if re.search(r"^(from|import) noether_", block, re.MULTILINE):
            yield block
