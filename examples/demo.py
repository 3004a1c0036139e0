"""Train both workloads in both frameworks, replay one's update outputs through both, and show everything side by side.

`make demo` runs this by `noether-parity demo`. Each training is a process of its own, in which the other framework is never
loaded; the replays run here, where both are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

import noether_jax
import noether_torch
from noether_core import read_run
from noether_core.errors import NoetherError, listing
from noether_core.inspect.picture import save_svg
from noether_core.parity import compare_runs, differing_files, read_recording, replay
from noether_core.parity.between_runs import compare_trainings
from noether_core.parity.divergence import Comparison
from noether_core.parity.side_by_side import drift_sentence, side_by_side
from noether_core.report import write_report
from noether_core.run import Run
from noether_core.text import inert

ROOT = Path(__file__).resolve().parents[1]
WORKLOADS = ("digits", "airfoil")
FRAMEWORKS = {"jax": "JAX", "torch": "PyTorch"}
_STYLES = {"same": "bold green", "differs": "bold red", "cannot say": "bold yellow"}
RUNS: dict[str, type[Run]] = {"jax": noether_jax.Run, "torch": noether_torch.Run}


class TrainingError(NoetherError):
    """Carry the output of a training that failed."""


class Reporter:
    """Show how far the trainings are: bars on a terminal, a line at each quarter elsewhere."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("{task.description:<18}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} updates"),
        )
        self.bars = Progress(*columns, TimeElapsedColumn(), console=console, disable=not console.is_terminal)
        self._console = console
        self._quarters: dict[str, int] = {}
        self._tasks: dict[str, TaskID] = {}

    def show(self, name: str, done: int, total: int) -> None:
        """Show one training's progress."""
        if name not in self._tasks:
            self._tasks[name] = self.bars.add_task(name, total=total)
        self.bars.update(self._tasks[name], completed=done)
        quarter = 4 * done // total
        if not self._console.is_terminal and quarter > self._quarters.get(name, 0):
            self._quarters[name] = quarter
            self._console.print(f"{name}: {done}/{total} updates", highlight=False)


def train(workload: str, framework: str, out: Path, reporter: Reporter, epochs: int | None = None) -> None:
    """Run one training as a process of its own; raise `TrainingError` with its output if it fails."""
    name = f"{workload} {FRAMEWORKS[framework]}"
    total = 1
    module = f"examples.{workload}.train_{framework}"
    command = [sys.executable, "-m", module, "--out", str(out), "--record", str(out.with_suffix(".safetensors"))]
    command += [] if epochs is None else ["--epochs", str(epochs)]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}  # two trainings share two cores
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if progress := re.fullmatch(r"progress (\d+)/(\d+)\n", line):
                total = int(progress[2])
                reporter.show(name, int(progress[1]), total)
    if process.returncode:
        raise TrainingError(f"{' '.join(command)} exited with {process.returncode}:\n{''.join(lines[-40:])}")
    reporter.show(name, total, total)


def train_both(workload: str, out: Path, reporter: Reporter, epochs: int | None = None) -> None:
    """Train one workload in both frameworks at once."""
    failures: list[Exception] = []

    def attempt(framework: str) -> None:
        try:
            train(workload, framework, out / framework, reporter, epochs)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=attempt, args=(framework,)) for framework in FRAMEWORKS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def replay_both(workload: str, out: Path) -> tuple[list[str], str]:
    """Feed the recorded outputs of the JAX training to both front-ends.

    Returns:
        The files that differ between the two, or from what the training itself wrote; and a sentence about it.
    """
    trained = out / "jax"
    recording = trained.with_suffix(".safetensors")
    settings = replay_settings(workload)
    for framework, run in RUNS.items():
        replay(
            recording, run(out / f"replayed_{framework}", ROOT / "examples" / workload / "callbacks.yaml", **settings)
        )
    across, files = differing_files(out / "replayed_jax", out / "replayed_torch")
    from_training, _ = differing_files(trained, out / "replayed_jax")
    steps = sum(1 for _ in read_recording(recording))
    numbers = sum(len(points) for points in read_run(out / "replayed_torch").series.values())
    if across:
        sentence = f"Fed the same update outputs, the front-ends differ in {', '.join(across)}."
    elif from_training:
        sentence = f"Both replays differ from what the JAX training itself wrote in {', '.join(from_training)}."
    else:
        sentence = (
            f"Fed the same update outputs ({steps} accumulation steps recorded in the JAX training), the JAX and the PyTorch"
            f" front-end wrote the same {numbers} numbers and {files} files: identical to the bit."
        )
    return sorted({*across, *from_training}), sentence


def replay_settings(workload: str) -> dict[str, int]:
    """Return the arguments with which the trainings made their runs."""
    from examples.airfoil import data as airfoil
    from examples.digits import data as digits

    data = {"airfoil": airfoil, "digits": digits}[workload]
    return {
        "updates_per_epoch": data.UPDATES_PER_EPOCH,
        "effective_batch_size": data.EFFECTIVE_BATCH_SIZE,
        "accumulation_steps": data.ACCUMULATION_STEPS,
    }


def run_demo(out: Path, svg: Path | None, console: Console, epochs: int | None = None) -> int:
    """Run everything; return the exit status: 1 if the front-ends differ in a single bit.

    Args:
        out: where the runs go; an earlier demo's are removed.
        svg: where to save the final screen as a picture; None for no picture.
        console: where to print.
        epochs: how long to train; None for each workload's own number.

    Raises:
        NoetherError: if `out` holds something else, or a training fails.
    """
    started = time.monotonic()
    _clear(out.resolve())
    console.print(
        "Training two workloads in JAX and in PyTorch: the same weights, batches and config.", highlight=False
    )
    reporter = Reporter(console)
    with reporter.bars:
        for workload in WORKLOADS:
            train_both(workload, out.resolve() / workload, reporter, epochs)
    status = report(out, svg, console, draw(out))
    console.print(f"Done in {time.monotonic() - started:.0f} s.", highlight=False)
    return status


def draw(out: Path) -> dict[str, Comparison]:
    """Compare what the trainings in `out` computed, write a page for each workload, and return what was found."""
    found = {}
    for workload in WORKLOADS:
        runs = [out / workload / framework for framework in FRAMEWORKS]
        found[workload] = compare_trainings(*runs)
        write_report(runs, page_of(out, workload), found[workload])
    return found


def page_of(out: Path, workload: str) -> Path:
    """Return where the page of a workload is."""
    return out / workload / "report.html"


def report(out: Path, svg: Path | None, console: Console, found: Mapping[str, Comparison]) -> int:
    """Replay and compare the trainings in `out`, and show all of it; return the exit status.

    Args:
        out: where the runs are.
        svg: where to save the screen as a picture; None for no picture.
        console: where to print.
        found: what `draw` returned.
    """
    parts: list[RenderableType] = []
    differing: list[str] = []
    for workload in WORKLOADS:
        directory = out.resolve() / workload
        differ, fed = replay_both(workload, directory)
        differing += [f"{workload}/{name}" for name in differ]
        drift = compare_runs(read_run(directory / "jax"), read_run(directory / "torch"))
        names = (FRAMEWORKS["jax"], FRAMEWORKS["torch"])
        title = f"{workload}: two independent trainings, last value of each key"
        sentences = [Text(fed, style="bold red" if differ else "bold green"), Text(drift_sentence(drift, names))]
        sentences += [probed_sentence(found[workload])] if workload in found else []
        parts += [Text(), side_by_side(title, drift, names), *sentences]
    console.print(Group(*parts))
    if svg is not None:
        save_svg(Group(*parts), svg, "make demo", width=112)
    console.print(
        f"\nThe runs are in {out}: look at one with `noether-parity show {out / 'digits' / 'jax'}`.",
        highlight=False,
    )
    for name in differing:
        console.print(f"differs: {name}", style="bold red", highlight=False)
    console.print("Both trainings of each workload on one page, for any browser:", highlight=False)
    for workload in found:
        console.print(str(page_of(out, workload)), highlight=False, soft_wrap=True, markup=False)
    return 1 if differing else 0


def probed_sentence(found: Comparison) -> Text:
    """Say what the comparison of what two trainings computed has found."""
    return Text(inert(f"Compared array by array: {found.sentence}"), style=_STYLES[found.outcome])


def _clear(out: Path) -> None:
    """Remove an earlier demo's runs, and nothing else."""
    if out.exists() and not out.is_dir():
        raise NoetherError(f"--out {str(out)!r} is a file; give an empty or new directory for the demo's runs")
    strangers = sorted(path.name for path in out.iterdir() if path.name not in WORKLOADS) if out.is_dir() else []
    if strangers:
        raise NoetherError(
            f"--out {str(out)!r} holds {listing(strangers)}; give an empty or new directory for the demo's runs"
        )
    shutil.rmtree(out, ignore_errors=True)
