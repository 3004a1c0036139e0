"""Explain a config against an example of update outputs, before any training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from noether_core.config.load import CallbackConfig, check_together
from noether_core.config.loop import LearningRateCallbackConfig, LoopConfig
from noether_core.config.tracking import NOTHING_COMES_OUT, TrackAdditionalOutputsCallbackConfig
from noether_core.config.yaml_file import parse_yaml
from noether_core.emit.arrays import read_headers
from noether_core.errors import ConfigFileError, NoetherError, UpdateOutputError, suggest
from noether_core.regular_files import read_regular
from noether_core.select import flatten, select
from noether_core.text import inert

_MOST_BYTES = 2**26  # of an example's file
_MOST_DIMENSIONS = 64  # of an array


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
    shape: tuple[int, ...]
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


def read_outputs(path: Path) -> dict[str, tuple[int, ...]]:
    """Read an example of update outputs: key to shape.

    A `.safetensors` file holds arrays. A JSON or YAML file holds a dict, nested ones allowed, of numbers, of nested lists
    of numbers, or of `{shape: [3, 4]}`.

    Raises:
        UpdateOutputError: if the file holds none of these.
    """
    try:
        if path.suffix == ".safetensors":
            return {key: header.shape for key, header in read_headers(path).items()}
        text = read_regular(path, _MOST_BYTES).decode("utf-8")
        document = json.loads(text) if path.suffix == ".json" else parse_yaml(text, "it")
        if not isinstance(document, Mapping):
            raise UpdateOutputError(
                f"{str(path)!r} holds {type(document).__name__}; expected a dict from names to numbers, lists or"
                " {shape: [...]}"
            )
        return dict(flatten(_shapes(document, "")))
    except UpdateOutputError:
        raise
    except RecursionError:
        raise UpdateOutputError(f"{str(path)!r} is nested too deep to read; give arrays as {{shape: [...]}}") from None
    except (OSError, ValueError, ConfigFileError) as error:
        raise UpdateOutputError(f"cannot read update outputs from {str(path)!r}: {error}") from error


def _shapes(outputs: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    shapes: dict[str, Any] = {}
    for name, value in outputs.items():
        key = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            shapes[name] = None if value is None else _shape(key, value)
        elif isinstance(value.get("shape"), list | str) and value.keys() <= {"shape", "dtype"}:
            shapes[name] = _declared_shape(key, value["shape"])
        else:
            shapes[name] = _shapes(value, key + "/")
    return shapes


def _declared_shape(key: str, dims: list[Any] | str) -> tuple[int, ...]:
    if isinstance(dims, str) or not _is_shape(dims):
        raise UpdateOutputError(
            f"update output {key!r} has the shape {dims!r:.200}; expected a list of ints of at least 0, such as [3, 4]"
        )
    return tuple(dims)


def _is_shape(dims: list[Any]) -> bool:
    return len(dims) <= _MOST_DIMENSIONS and all(type(dim) is int and 0 <= dim < 2**63 for dim in dims)


def _shape(key: str, value: Any) -> tuple[int, ...]:
    if isinstance(value, list):
        inner = {_shape(key, item) for item in value}
        if len(inner) > 1:
            raise UpdateOutputError(
                f"update output {key!r} is a ragged list; make its rows equally long, or give {{shape: [...]}}"
            )
        return (len(value), *(inner.pop() if inner else ()))
    if isinstance(value, bool | int | float):
        return ()
    raise UpdateOutputError(
        f"update output {key!r} is {type(value).__name__} {value!r:.200}; expected a number, a list or {{shape: [...]}}"
    )


def explain_together(configs: Sequence[CallbackConfig], outputs: Mapping[str, tuple[int, ...]]) -> list[Explanation]:
    """Return what each callback of a run does, with what `Run` would refuse of them together."""
    explanations: list[Explanation] = []
    logged: dict[str, str] = {}
    for at, config in enumerate(configs):
        found = explain(config, outputs)
        matched = []
        for match in found.matched:
            twice = next((f"{name!r} is logged by {logged[name]} too" for name in match.logged if name in logged), "")
            advice = f"{twice}; let one callback log it, or give different intervals" if twice else ""
            matched.append(replace(match, problem=match.problem or advice))
            logged.update(dict.fromkeys(match.logged, found.title))
        unmatched = [*found.unmatched]
        try:
            check_together(configs[: at + 1])
        except NoetherError as error:
            unmatched.append(str(error))
        explanations.append(replace(found, matched=tuple(matched), unmatched=tuple(unmatched)))
    return explanations


def explain(config: CallbackConfig, outputs: Mapping[str, tuple[int, ...]]) -> Explanation:
    """Return what a callback of this config does with update outputs of these keys and shapes."""
    if isinstance(config, TrackAdditionalOutputsCallbackConfig):
        return _explain_tracking(config, outputs)
    unmatched = []
    key = config.key if isinstance(config, LearningRateCallbackConfig) else None
    if key is not None and not any(f"{name}/".startswith(key + "/") for name in outputs):
        unmatched = [f"key {key!r} is not among the update outputs.{suggest(key, outputs)}"]
    logs = config.logs if isinstance(config, LoopConfig) else ()
    return Explanation(f"{config.name}({config.interval.verbose})", (), tuple(unmatched), logs)


def _explain_tracking(
    config: TrackAdditionalOutputsCallbackConfig, outputs: Mapping[str, tuple[int, ...]]
) -> Explanation:
    available = list(outputs)
    keys, patterns = config.keys or [], config.patterns or []
    selection = select(keys, patterns, available)
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
    if not config.gives_something:
        unmatched.append(NOTHING_COMES_OUT)
    matched = tuple(_match(config, key, outputs[key]) for key in selection.tracked)
    title = f"{config.name}({config.interval.verbose}, keys={keys}, patterns={patterns})"
    return Explanation(title, matched, tuple(unmatched))


def _match(config: TrackAdditionalOutputsCallbackConfig, key: str, shape: tuple[int, ...]) -> Matched:
    reductions = config.reductions(key)
    by = "key" if key in (config.keys or []) else ", ".join(f"pattern {p!r}" for p in config.patterns or [] if p in key)
    names = tuple(config.log_key(key, reduction) for reduction in reductions)
    logged, told = (names, ()) if config.log_output else ((), names if config.verbose else ())
    saved = tuple(config.tensor_name(key, reduction) for reduction in reductions) if config.save_output else ()
    is_field = config.log_output and "last" in reductions and math.prod(shape) != 1
    problem = (
        f"`last` of shape {shape} cannot be logged; set log_output: false and save_output: true" if is_field else ""
    )
    return Matched(key, shape, by, logged, told, saved, problem)


def render(explanations: Sequence[Explanation], outputs: Mapping[str, tuple[int, ...]]) -> RenderableType:
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
        table.add_row(*map(Text, (inert(match.key), str(match.shape), inert(match.by), logged, saved)))
    return table


def _names(title: str, logs: Sequence[str]) -> Text:
    lines = [f"  logs {inert(name)}" for name in logs] or ["  logs no values"]
    return Text("\n").join([Text(inert(title), style="bold"), *map(Text, lines)])
