"""Show a comparison: the sentence, the stages as a ladder, the differences in order, the causes with what speaks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.progress import MofNCompleteColumn, Progress
from rich.table import Table
from rich.text import Text

from noether_core.parity.divergence.result import Comparison, Divergence
from noether_core.probes import STAGES
from noether_core.text import inert

DIFFERENCES = 10
_STYLES = {"same": "bold green", "differs": "bold red", "cannot say": "bold yellow"}
_MEANINGS = {
    "data": "the batch",
    "param": "parameters before the step",
    "act": "activations",
    "loss": "losses",
    "grad": "gradients",
    "clip": "clipped gradients",
    "update": "what the step adds to the parameters",
    "opt": "optimizer state and buffers after the step",
}


def show_comparison(comparison: Comparison, most: int = DIFFERENCES) -> Group:
    """Return the first screen of a comparison.

    Args:
        comparison: what was found.
        most: how many differences are listed.
    """
    parts: list[RenderableType] = [Text(inert(comparison.sentence), _STYLES[comparison.outcome])]
    if comparison.compared:
        parts.append(_ladder(comparison))
    if comparison.differences:
        parts.append(_list(comparison.differences, most))
    parts += _causes(comparison)
    parts += [Text(f"• {inert(warning)}", "yellow") for warning in comparison.warnings]
    return Group(*parts)


@contextmanager
def progress_on(console: Console) -> Iterator[Callable[[int, int], None] | None]:
    """Show how many updates are compared, on a terminal and while the block lasts; yield what is to be called with that."""
    if not console.is_terminal:
        yield None
        return
    with Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console, transient=True) as shown:
        task = shown.add_task("comparing updates", total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def as_text(comparison: Comparison, most: int = DIFFERENCES) -> str:
    """Return the same as plain lines, for a message.

    >>> as_text(Comparison("same", "Same through update 3.", ("a", "b")))
    'Same through update 3.'
    """
    lines = [comparison.sentence]
    for each in comparison.differences[:most]:
        shape = f" ({each.shape})" if each.shape else ""
        lines.append(f"  update {each.update}  {each.key}  {each.distance:.2g}, {_times(each)} × noise{shape}")
    rest = len(comparison.differences) - most
    lines += [f"  and {rest} more"] if rest > 0 else []
    for number, cause in enumerate(comparison.causes, 1):
        lines += ["Likely causes:"] if number == 1 else []
        lines += [f"  {number}. {cause.sentence} [{cause.id}]", *(f"     {line}" for line in cause.evidence)]
    return "\n".join(map(inert, [*lines, *comparison.warnings]))


def _ladder(comparison: Comparison) -> Table:
    """Return a table of the stages in the order of a step, each with its own first difference."""
    table = Table(title=Text(inert(" beside ".join(comparison.labels))), title_justify="left")
    for column in ("stage", "", "first differs at", "key", "distance", "× noise"):
        table.add_column(column, justify="right" if column in ("distance", "× noise") else "left")
    for stage in STAGES:
        first = next((each for each in comparison.differences if each.stage == stage), None)
        if first is None:
            table.add_row(stage, _MEANINGS[stage], _without_difference(stage, comparison), "", "", "")
            continue
        is_first = comparison.first is not None and first == comparison.first
        row = (f"update {first.update}", inert(first.key), f"{first.distance:.2g}", _times(first))
        table.add_row(stage, _MEANINGS[stage], *(Text(each, "bold red" if is_first else "") for each in row))
    return table


def _without_difference(stage: str, comparison: Comparison) -> Text:
    """Say of a stage with no difference that is listed whether it is the same."""
    if stage not in comparison.stages:
        return Text("not in both", "dim")
    if not comparison.is_judged(stage):
        return Text("not judged after the first difference", "dim")
    if comparison.first is None:
        return Text("✓", "green")
    return Text(f"✓ through update {comparison.first.update}", "green")


def _list(differences: tuple[Divergence, ...], most: int) -> Table:
    rest = len(differences) - most
    table = Table(
        title="Differences, in the order of computation"
        + (f" (the first {most} of {len(differences)})" if rest > 0 else ""),
        title_justify="left",
    )
    for column in ("update", "key", "distance", "noise", "× noise", "ulps", "what it looks like"):
        table.add_column(column, justify="left" if column in ("key", "what it looks like") else "right")
    for each in differences[:most]:
        ulps = "" if each.ulps is None else f"{each.ulps:.3g}"
        numbers = (f"{each.distance:.2g}", f"{each.noise:.2g}", _times(each), ulps)
        key, shape = (Text(inert(text)) for text in (each.key, each.shape))  # as Text, which has no markup
        table.add_row(str(each.update), key, *numbers, shape)
    return table


def _causes(comparison: Comparison) -> Iterator[Text]:
    for number, cause in enumerate(comparison.causes, 1):
        if number == 1:
            yield Text("Likely causes", "bold")
        yield Text(f"{number}. {inert(cause.sentence)} ") + Text(f"[{inert(cause.id)}]", "dim")
        yield from (Text(f"   {inert(line)}", "dim") for line in cause.evidence)


def _times(divergence: Divergence) -> str:
    return f"{divergence.times_noise:.2g}" if divergence.times_noise < 1e6 else f"{divergence.times_noise:.0e}"
