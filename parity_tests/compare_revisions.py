"""Run two revisions on the same update outputs, and compare what they log and save, byte by byte.

    python -m parity_tests.compare_revisions 718aba9 .

A revision is one of git's, or a directory that holds the packages. Each runs in a process of its own, with this tree's
generated trainings, and with both examples' update outputs as this tree's JAX trainings record them. Exit status: 1 if any
byte of `metrics/` or `update_outputs/` differs, but for the checksums in array files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("noether_core", "noether_jax", "noether_torch")
WORKLOADS = ("digits", "airfoil")


@contextlib.contextmanager
def checked_out(revision: str, directory: Path) -> Iterator[Path]:
    """Give the packages' directory: the one that is named, or a worktree that is made for a revision of git's."""
    if (Path(revision) / PACKAGES[0]).is_dir():
        yield Path(revision).resolve()
        return
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(directory), revision], check=True)
    try:
        yield directory
    finally:
        subprocess.run([*git, "remove", "--force", str(directory)], check=True)


def start(directory: Path, packages: Path, *command: str) -> subprocess.Popen[bytes]:
    """Start a module of this tree's tests or examples with some revision's packages."""
    directory.mkdir()
    for name in PACKAGES:
        (directory / name).symlink_to(packages / name)
    for name in ("parity_tests", "examples"):
        (directory / name).symlink_to(ROOT / name)
    environment = os.environ | {"PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, "-m", *command], cwd=directory, env=environment, stdout=subprocess.DEVNULL)


def wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    failed = [process.args for process in processes if process.wait()]
    if failed:
        raise SystemExit(f"failed: {failed}")


def record(directory: Path, recordings: Path) -> None:
    """Train both workloads in JAX with this tree, and record their update outputs."""
    recordings.mkdir()
    trainings = [
        start(
            directory / f"train_{name}",
            ROOT,
            f"examples.{name}.train_jax",
            *("--out", str(directory / name), "--record", str(recordings / f"{name}.safetensors")),
        )
        for name in WORKLOADS
    ]
    wait(trainings)


def written(directory: Path) -> dict[str, bytes]:
    """Return the files of all runs in a directory that hold what was logged and saved."""
    return {
        path.relative_to(directory).as_posix(): without_checksums(path)
        for folder in ("metrics", "update_outputs")
        for path in directory.glob(f"*/{folder}/**/*")
        if path.is_file() and not path.name.endswith(".time.jsonl")  # when it was written
    }


def without_checksums(path: Path) -> bytes:
    """Return what a file holds, of arrays without the metadata: earlier revisions wrote no checksums there."""
    data = path.read_bytes()
    if path.suffix != ".safetensors":
        return data
    begin = 8 + int.from_bytes(data[:8], "little")
    header = {name: about for name, about in json.loads(data[8:begin]).items() if name != "__metadata__"}
    return json.dumps(header).encode() + data[begin:]


def compare(before: Path, after: Path) -> list[str]:
    """Print how much was compared, and return the files that differ or that one of the two lacks."""
    ours, theirs = written(before), written(after)
    differing = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    logged = sum(content.count(b"\n") for name, content in ours.items() if "/metrics/" in name)
    size = sum(map(len, ours.values()))
    print(f"{before.name}: {len(ours)} files, {logged} log lines, {size} bytes compared; {len(differing)} files differ")
    return differing


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="a revision, or a directory")
    parser.add_argument("after", help="another, such as . for the working tree")
    parser.add_argument("--trainings", type=int, default=2000, help="how many to generate")
    arguments = parser.parse_args()
    revisions = {"before": arguments.before, "after": arguments.after}
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        directory = Path(temporary)
        recordings = directory / "recordings"
        record(directory, recordings)
        processes = []
        for name, revision in revisions.items():
            packages = stack.enter_context(checked_out(revision, directory / f"{name}_worktree"))
            command = ("parity_tests.revision_runs", str(directory / f"{name}_runs"), "--recordings", str(recordings))
            number = ("--trainings", str(arguments.trainings))
            processes.append(start(directory / name, packages, *command, *number))
        wait(processes)
        pairs = [[directory / f"{name}_runs" / kind for name in revisions] for kind in ("workloads", "trainings")]
        differing = [name for before, after in pairs for name in compare(before, after)]
    for name in differing[:50]:
        print(f"differs: {name}")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
