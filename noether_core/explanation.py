"""Explain configs against an example of update outputs, before any training."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from noether_core.config.load import CallbackConfig, check_together
from noether_core.config.log_names import title_of
from noether_core.config.loop import LearningRateCallbackConfig, LoopConfig
from noether_core.config.tracking import NOTHING_COMES_OUT, TrackAdditionalOutputsCallbackConfig
from noether_core.errors import NoetherError, suggest
from noether_core.scalars import shape_of
from noether_core.select import flatten, select
from noether_core.text import inert

Shape = tuple[int, ...] | None  # None: of what is no number and no array of them
_WIDTH = 120  # characters of a line


@dataclass(frozen=True)
class Matched:
    """Say what a config does with one key.

    Attributes:
        by: the exact key or the patterns that name it.
        logged: the names it is logged under.
        told: the names under which only `logging` is told.
        saved: the names its tensors are saved under.
        problem: why it would fail, or an empty string.
    """

    key: str
    shape: Shape
    by: str
    logged: tuple[str, ...]
    told: tuple[str, ...]
    saved: tuple[str, ...]
    problem: str


@dataclass(frozen=True)
class Explanation:
    """Say what one callback does: its matches, and what of its config matches nothing or would be refused.

    `logs` are the names that a callback which tracks no update outputs logs under; None for one that does.
    """

    title: str
    matched: tuple[Matched, ...]
    unmatched: tuple[str, ...]
    logs: tuple[str, ...] | None = None

    @property
    def is_clean(self) -> bool:
        """Tell whether every entry matches and nothing would fail."""
        return not self.unmatched and not any(match.problem for match in self.matched)


def explain_together(configs: Sequence[CallbackConfig], outputs: Mapping[str, Shape]) -> list[Explanation]:
    """Return what each callback of a run does, with what `Run` would refuse of them together."""
    explanations: list[Explanation] = []
    logged: dict[str, str] = {}
    is_together = True
    for at, config in enumerate(configs):
        found = explain(config, outputs)
        matched = []
        for match in found.matched:
            twice = next((f"{name!r} is logged by {logged[name]} too" for name in match.logged if name in logged), "")
            advice = (
                f'{twice}; let one callback log it, or give one another name: log_as: "other/{{key}}"' if twice else ""
            )
            matched.append(replace(match, problem=match.problem or advice))
            logged.update(dict.fromkeys(match.logged, found.title))
        unmatched = [*found.unmatched]
        try:
            check_together(configs[: at + 1] if is_together else ())
        except NoetherError as error:
            is_together = False  # which is said once
            unmatched.append(str(error))
        explanations.append(replace(found, matched=tuple(matched), unmatched=tuple(unmatched)))
    return explanations


def explain(config: CallbackConfig, outputs: Mapping[str, Shape]) -> Explanation:
    """Return what a callback of this config does with update outputs of these keys and shapes."""
    if isinstance(config, TrackAdditionalOutputsCallbackConfig):
        return _explain_tracking(config, outputs)
    unmatched = []
    key = config.key if isinstance(config, LearningRateCallbackConfig) else None
    if key is not None and not any(f"{name}/".startswith(key + "/") for name in outputs):
        unmatched = [f"key {key!r} is not among the update outputs.{suggest(key, outputs)}"]
    logs = config.logs if isinstance(config, LoopConfig) else ()
    return Explanation(title_of(config), (), tuple(unmatched), logs)


def _explain_tracking(config: TrackAdditionalOutputsCallbackConfig, outputs: Mapping[str, Shape]) -> Explanation:
    available = list(outputs)
    keys, patterns = config.keys or [], config.patterns or []
    scalars = {key for key, shape in outputs.items() if shape is not None and math.prod(shape) == 1}
    selection = select(keys, patterns, available, scalars if config.scalars else None)
    unmatched = [f"key {key!r} is not among the update outputs.{suggest(key, available)}" for key in selection.missing]
    for pattern, matches in selection.matches.items():
        if not matches:
            glob = " A pattern is a literal substring, no glob or regex." if set(pattern) & set("*?[]^$") else ""
            unmatched.append(f"pattern {pattern!r} is contained in no key.{glob}{suggest(pattern, available)}")
    if isinstance(config.reduce, dict):
        unmatched += [
            f"reduce names {name!r}, which no tracked key contains.{suggest(name, selection.tracked)}"
            for name in config.reduce
            if not any(name in key for key in selection.tracked)
        ]
    if config.scalars and not selection.tracked:
        unmatched.append("no update output is a single number, so `scalars` tracks none")
    if not config.gives_something:
        unmatched.append(NOTHING_COMES_OUT)
    matched = tuple(_match(config, key, outputs[key]) for key in selection.tracked)
    return Explanation(title_of(config), matched, tuple(unmatched))


def _match(config: TrackAdditionalOutputsCallbackConfig, key: str, shape: Shape) -> Matched:
    reductions = config.reductions(key)
    patterns = ", ".join(f"pattern {pattern!r}" for pattern in config.patterns or [] if pattern in key)
    by = "key" if key in (config.keys or []) else patterns or "scalars"
    names = tuple(config.log_key(key, reduction) for reduction in reductions)
    logged, told = (names, ()) if config.log_output else ((), names if config.verbose else ())
    saved = tuple(config.tensor_name(key, reduction) for reduction in reductions) if config.save_output else ()
    is_field = config.log_output and "last" in reductions and math.prod(shape or ()) != 1
    problem = (
        f"`last` of shape {shape} cannot be logged; set log_output: false and save_output: true" if is_field else ""
    )
    if shape is None:
        problem = "it is no number and no array of numbers, and cannot be tracked"
    return Matched(key, shape, by, logged, told, saved, problem)


def render(explanations: Sequence[Explanation], outputs: Mapping[str, Shape]) -> RenderableType:
    """Return what `noether-parity explain` prints."""
    parts: list[RenderableType] = []
    for explanation in explanations:
        parts.append(_table(explanation) if explanation.logs is None else _names(explanation.title, explanation.logs))
        problems = [
            *explanation.unmatched,
            *(f"{match.key!r}: {match.problem}" for match in explanation.matched if match.problem),
        ]
        parts += [Text(f"✗ {inert(problem)}", style="bold red") for problem in problems]
    tracked = {match.key for explanation in explanations for match in explanation.matched}
    left = [inert(key) for key in outputs if key not in tracked]
    if left:
        parts.append(Text(f"not tracked: {', '.join(left)}", style="dim"))
    return Group(*parts)


def _table(explanation: Explanation) -> Table:
    table = Table(title=Text(inert(explanation.title), style="bold"), title_justify="left")
    for heading in ("update output", "shape", "matched by", "logged as", "saved as"):
        table.add_column(heading, overflow="fold")
    for match in explanation.matched:
        names = *match.logged, *(f"{name} (logging only)" for name in match.told)
        logged, saved = ("\n".join(map(inert, names)) or "-" for names in (names, match.saved))
        table.add_row(
            *map(
                Text,
                (inert(match.key), "-" if match.shape is None else str(match.shape), inert(match.by), logged, saved),
            )
        )
    return table


def _names(title: str, logs: Sequence[str]) -> Text:
    lines = [f"  logs {inert(name)}" for name in logs] or ["  logs no values"]
    return Text("\n").join([Text(inert(title), style="bold"), *map(Text, lines)])


@dataclass(frozen=True, repr=False)
class Explained:
    """Say what a run does with the update outputs that one has in hand; as text, what `noether-parity explain` prints.

    Attributes:
        explanations: of each callback with a config of these packages.
        outputs: the shape of each output, by its key.
    """

    explanations: tuple[Explanation, ...]
    outputs: Mapping[str, Shape]

    @property
    def is_clean(self) -> bool:
        """Tell whether every entry matches and nothing would fail."""
        return all(explanation.is_clean for explanation in self.explanations)

    def __repr__(self) -> str:
        console = Console(file=io.StringIO(), width=_WIDTH, color_system=None)
        with console.capture() as captured:
            console.print(render(self.explanations, self.outputs))
        return "\n".join(line.rstrip() for line in captured.get().rstrip().splitlines())


def explain_outputs(configs: Sequence[CallbackConfig], update_outputs: Any) -> Explained:
    """Return what each callback of a run does with these update outputs: a record of arrays, or of what stands for some.

    Raises:
        UpdateOutputError: for what is no record, or two entries that flatten to one key.
    """
    outputs = {key: shape_of(value) for key, value in flatten(update_outputs).items()}
    return Explained(tuple(explain_together(configs, outputs)), outputs)
