"""Parse the arguments of `noether-parity`; the work is done elsewhere."""

from __future__ import annotations

import importlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

from noether_core.config.load import load_callbacks
from noether_core.dependencies import own_version
from noether_core.emit.capsule import read_capsule
from noether_core.emit.export import export_run
from noether_core.errors import NoetherError
from noether_core.explanation import explain_together, render
from noether_core.inspect.capsule import STEPS
from noether_core.inspect.example import read_outputs
from noether_core.inspect.follow import follow
from noether_core.inspect.look import look
from noether_core.inspect.picture import save_svg
from noether_core.parity.between_runs.answer import compare_trainings
from noether_core.parity.between_runs.calibrate import TWINS, calibrate
from noether_core.parity.between_runs.screen import progress_on, show_comparison
from noether_core.parity.check import check_run
from noether_core.parity.merge import merge_run
from noether_core.report import write_plot, write_report
from noether_core.text import inert, message

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _console() -> Console:
    """Return a console that leaves tables uncut where the output is no terminal."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = 160
    return console


def _complain(text: str, style: str) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(message(text), style=style, markup=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"noether-callbacks {own_version()}")  # noqa: T201
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """See what a training step computes, and whether a port computes the same."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Where the runs go.")] = Path("runs/demo"),
    svg: Annotated[Path | None, typer.Option(help="Also save the final screen as a picture.")] = None,
) -> None:
    """Train two real workloads in JAX and in PyTorch under one config, and show both side by side."""
    root = Path(__file__).resolve().parents[1]
    if not (root / "examples" / "demo.py").is_file():
        raise NoetherError(
            f"the demo trains the workloads in examples/, and {str(root)!r} has none: clone the repository and run `make demo`"
        )
    sys.path.insert(0, str(root))
    run_demo = importlib.import_module("examples.demo").run_demo
    raise typer.Exit(run_demo(out, svg, _console()))


Keys = Annotated[
    list[str] | None, typer.Option("--keys", "-k", help="Only keys with all these words; may be given again.")
]


@app.command()
def show(
    runs: Annotated[
        list[Path],
        typer.Argument(help="A run directory, or several; a folder of runs; or a capsule of a run that failed."),
    ],
    follow_it: Annotated[
        bool, typer.Option("--follow", "-f", help="Show a run while it is written, until Ctrl-C.")
    ] = False,
    keys: Keys = None,
    svg: Annotated[Path | None, typer.Option(help="Also save it as a picture.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=4096, help="How many steps of a capsule are shown.")] = STEPS,
    as_json: Annotated[bool, typer.Option("--json", help="Print a capsule as JSON.")] = False,
) -> None:
    """Show a run: its series with sparklines, and its saved arrays. Several side by side; of a folder, a line for each run.

    Of a capsule: what ended the run, and the newest values.
    """
    run = runs[0]
    if as_json and (len(runs) > 1 or not run.is_file()):
        raise NoetherError(f"{str(run)!r} is a run directory, and --json is for a capsule: give one of its capsules/")
    if as_json:
        print(json.dumps(read_capsule(run).as_json(), indent=1))  # noqa: T201
        return
    if follow_it:
        if len(runs) > 1 or run.is_file():
            raise NoetherError("--follow shows one run directory; give one")
        follow(run, _console(), keys or ())
        return
    screen = look(runs, keys or (), steps)
    _console().print(screen, crop=False)
    if svg is not None:
        save_svg(screen, svg, f"noether-parity show {' '.join(inert(str(each)) for each in runs)}")


@app.command("explain")
def explain_command(
    config: Annotated[Path, typer.Argument(help="A YAML file with a `callbacks:` list.")],
    outputs: Annotated[Path, typer.Argument(help="An example of update outputs: .json, .yaml or .safetensors.")],
) -> None:
    """Say what a config would track of these update outputs, before any training. Exits 1 if an entry matches nothing."""
    shapes = read_outputs(outputs)
    explanations = explain_together(load_callbacks(config), shapes)
    _console().print(render(explanations, shapes))
    raise typer.Exit(0 if all(each.is_clean for each in explanations) else 1)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    to: Annotated[str, typer.Option(help="tensorboard, wandb (offline), trackio, mlflow, csv or parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="The file or directory to write; by default one in the run's exports/.")
    ] = None,
) -> None:
    """Fill a tool, or write a table, from a run: each key and update once. A second export takes the first one's place."""
    exported = export_run(run, to, out)
    for problem in exported.problems:
        _complain(f"damaged, left out: {problem}", "bold red")
    print(f"{exported.entries} entries: {inert(str(exported.path))}")  # noqa: T201


@app.command()
def merge(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Make do with the processes whose files are there.")
    ] = False,
) -> None:
    """Log the intervals that a run's processes could not pool, from what each of them saved. Exits 1 if some stay unmerged."""
    report = merge_run(run, partial=partial)
    for sentence in report.merged or ([] if report.problems else ["nothing to merge"]):
        print(inert(sentence))  # noqa: T201
    for problem in report.problems:
        _complain(f"not merged: {problem}", "bold red")
    raise typer.Exit(1 if report.problems else 0)


@app.command()
def check(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Verify a run: checksums, who wrote it, what is missing, what is superseded. Exits 1 if anything is damaged or missing."""
    report = check_run(run)
    for line in [json.dumps(report.as_json(), indent=1)] if as_json else report.lines():
        print(line if as_json else message(line))  # noqa: T201
    raise typer.Exit(0 if report.is_clean else 1)


@app.command("compare")
def compare_command(
    a: Annotated[Path, typer.Argument(help="A run directory of a training with probes.")],
    b: Annotated[Path, typer.Argument(help="The other one.")],
    twins: Annotated[
        list[Path] | None, typer.Option(help="A twin of either, besides those in RUN/twins; may be given again.")
    ] = None,
    mapping: Annotated[
        Path | None,
        typer.Option(help="A YAML file: for each of A's parameters what B calls it, where that is not found."),
    ] = None,
    through: Annotated[
        int | None, typer.Option(min=1, help="The last update to compare, where one is meant to end before the other.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON; docs/compare.md has the schema.")] = False,
    report: Annotated[Path | None, typer.Option(help="Also write it as one HTML file.")] = None,
) -> None:
    """Say where two trainings first part, and why. Exits 0: the same, 1: they differ, 2: it cannot be said."""
    with progress_on(Console(stderr=True)) as progress:
        found = compare_trainings(a, b, twins=tuple(twins or ()), mapping=mapping, through=through, progress=progress)
    if as_json:
        print(json.dumps(found.as_json(), indent=1))  # noqa: T201
    else:
        _console().print(show_comparison(found))
    if report is not None:
        write_report([a, b], report, found)
    raise typer.Exit(found.exit_code)


@app.command("calibrate")
def calibrate_command(
    run: Annotated[Path, typer.Argument(help="A run directory of a training with probes.")],
    command: Annotated[list[str], typer.Argument(help="What made it, after --: python train.py …")],
    twins: Annotated[int, typer.Option(min=1, max=64, help="How many twins there are to be.")] = TWINS,
    again: Annotated[bool, typer.Option("--again", help="Make those anew that are there.")] = False,
) -> None:
    """Make a run's twins: run its script again, one rounding error apart, for `compare` to know what is noise."""
    made = calibrate(run, command, number=twins, again=again, tell=lambda sentence: print(inert(sentence), flush=True))  # noqa: T201
    print(f"{inert(str(run))} has {len(made)} twins")  # noqa: T201


@app.command("report")
def report_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, one or several, or a folder of runs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Draw runs as one page of HTML, for any browser and without a network: curves, saved arrays, configs side by side."""
    path = write_report(runs, out)
    print(f"{path.stat().st_size / 1e6:.1f} MB: {inert(str(path))}")  # noqa: T201


@app.command("plot")
def plot_command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, one or several, or a folder of runs.")],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="What to write: a page (.html), or a picture (.png, .svg, .pdf).")
    ] = Path("plot.html"),
    keys: Keys = None,
    x: Annotated[str, typer.Option("--x", help="Over update, epoch, sample or time.")] = "update",
    log: Annotated[bool, typer.Option("--log", help="Draw values on a log scale.")] = False,
    smooth: Annotated[float, typer.Option(help="Smooth curves, in percent of the axis: 0 to 25.")] = 0.0,
) -> None:
    """Draw the curves of runs over each other: a page for any browser, without a network, or a picture."""
    path = write_plot(runs, out, keys=keys or (), axis=x, log=log, smooth=smooth)
    print(f"{path.stat().st_size / 1e6:.1f} MB: {inert(str(path))}")  # noqa: T201


def main() -> None:
    """Run the command line; an error of ours is one message, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may not have every character of ours
    try:
        app()
    except (NoetherError, ValidationError, OSError) as error:
        _complain(f"noether-parity: {error}", "red")
        raise SystemExit(2) from None
