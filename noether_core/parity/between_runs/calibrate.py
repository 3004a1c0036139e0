"""Make a run's twins by running its script again, and find those that were made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from noether_core.emit.writer_lock import WriterLock
from noether_core.parity.between_runs.twin_check import problem_of_twin
from noether_core.parity.divergence.training import Training
from noether_core.probes import read_training
from noether_core.twin import FILE, VARIABLE, Twin, TwinError

DIRECTORY = "twins"
TWINS = 2
_NUMBER = re.compile(r"[1-9]\d{0,3}")


def calibrate(
    run: str | Path,
    command: Sequence[str],
    *,
    number: int = TWINS,
    again: bool = False,
    tell: Callable[[str], None] = print,
) -> tuple[Twin, ...]:
    """Make the twins of a run that are not there yet: run its script again, with nudged weights, into `RUN/twins/1` and so on.

    Every second one has the rows of its batches permuted as well. While the script runs, nothing can write to the run itself.

    Args:
        run: the run directory of a training with probes.
        command: what made it: the program and its arguments, as for `subprocess.run`. It works in the present directory.
        number: how many twins there are to be.
        again: make those that are there once more.
        tell: called with a sentence on each.

    Returns:
        The twins of the run, those that were there before included.

    Raises:
        TwinError: if the script cannot be run, fails, or makes no twin of this run.
    """
    path = Path(run).absolute()
    training = _probed(path)
    if not command:
        raise TwinError(
            "calibrate got no command; give it what made the run: noether-parity calibrate RUN -- python train.py"
        )
    for seed in range(1, number + 1):
        twin = Twin(path, path / DIRECTORY / str(seed), seed, rows=seed % 2 == 0)
        if not again and _is_made(twin.path):
            tell(f"twin {seed} is there: {twin.path}")
            continue
        tell(f"twin {seed}: weights nudged by one rounding error{', rows permuted' if twin.rows else ''}")
        _make(twin, command)
        _accept(twin, training, tell)
    return find_twins(path)


def _probed(path: Path) -> Training:
    training = read_training(path)
    if not training.updates():
        raise TwinError(
            f"{str(path)!r} has no probed updates, and its twins would have none: `probe(...)` in its script first"
        )
    return training


def _accept(twin: Twin, training: Training, tell: Callable[[str], None]) -> None:
    """Mark a twin as made if it is one; of rows that cannot be permuted, say so."""
    problem = problem_of_twin(training, read_training(twin.path), rows=twin.rows)
    if problem and not twin.rows:
        raise TwinError(f"what was written to {str(twin.path)!r} is no twin of {str(twin.run)!r}: {problem}")
    if problem:
        tell(f"twin {twin.seed} is left out: {problem}")
    else:
        replace(twin, is_made=True).write()


def find_twins(run: str | Path) -> tuple[Twin, ...]:
    """Return the twins beside a run, in `RUN/twins`, that were made to the end."""
    there = Path(run).absolute() / DIRECTORY
    if not there.is_dir():
        return ()
    numbers = sorted(int(each.name) for each in there.iterdir() if _NUMBER.fullmatch(each.name))
    return tuple(Twin.read(there / str(each)) for each in numbers if _is_made(there / str(each)))


def _is_made(path: Path) -> bool:
    return (path / FILE).is_file() and Twin.read(path).is_made


def _make(twin: Twin, command: Sequence[str]) -> None:
    """Run the script into the twin's directory, with the run itself held so that the script cannot write to it."""
    if twin.path.exists():
        shutil.rmtree(twin.path)
    twin.write()
    lock = WriterLock(twin.run)
    lock.hold()
    try:
        ended = subprocess.run(list(command), env={**os.environ, VARIABLE: str(twin.path)}, check=False).returncode
    except OSError as error:
        raise TwinError(f"{command[0]!r} cannot be run: {error.strerror or error}") from None
    finally:
        lock.release()
    how = f"`Run(twin_path({str(twin.run)!r}), ...)`"
    if ended:
        raise TwinError(
            f"{' '.join(command)!r} ended with exit code {ended} as it made twin {twin.seed}; its own message is above. If that"
            f" says that {str(twin.run)!r} is being written, let the script open its run by {how}"
        )
    if not (twin.path / "metrics").is_dir():
        raise TwinError(
            f"{' '.join(command)!r} wrote no run to {str(twin.path)!r}; let it open its run by {how}, so that a twin goes there"
        )
