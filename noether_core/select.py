"""SELECT: match the keys and patterns of a config against the keys of a step's update outputs.

A selection is immutable plain data, worked out once per key set and then only looked up.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from types import NoneType
from typing import Any

from noether_core.errors import MissingKeyError, UpdateOutputError, listing, suggest
from noether_core.records import is_box_type, is_record_type, items_of
from noether_core.scalars import are_alike, forms_of, scalars_of

MOST_KEY = 60_000  # characters; a log key is longer by a few
_MOST = 256  # key sets, or types, that are kept in mind
_DEEPEST = 100  # records within one another that are opened


@dataclass(frozen=True)
class Selection:
    """List what a config tracks of one key set.

    Attributes:
        tracked: the keys to track: the exact ones in the config's order, then those that a pattern matched, in the dict's.
        missing: the exact keys that are not there.
        matches: for each pattern, the keys that contain it.
        left: where every single number is tracked, the keys of what is none and not named either.
    """

    tracked: tuple[str, ...]
    missing: tuple[str, ...]
    matches: Mapping[str, tuple[str, ...]]
    left: tuple[str, ...] = ()

    @cached_property
    def _pick(self) -> Any:
        return itemgetter(*self.tracked)

    @cached_property
    def matched(self) -> frozenset[str]:
        """Return the patterns that some key contains."""
        return frozenset(pattern for pattern, keys in self.matches.items() if keys)

    def values(self, outputs: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the values of the tracked keys."""
        if len(self.tracked) > 1:
            picked: tuple[Any, ...] = self._pick(outputs)
            return picked
        return tuple([outputs[key] for key in self.tracked])


def select(
    keys: Sequence[str], patterns: Sequence[str], available: Sequence[str], scalars: Collection[str] | None = None
) -> Selection:
    """Return which of the `available` keys are named exactly or contain a pattern, literally and case-sensitively.

    Or are among the `scalars`, if every single number is tracked.

    >>> select(["loss"], ["grad"], ["grad/norm", "loss", "lr"]).tracked
    ('loss', 'grad/norm')
    """
    present = set(available)
    matches = {pattern: tuple(key for key in available if pattern in key) for pattern in patterns}
    matched = set().union(*matches.values()) if matches else set()
    exact = dict.fromkeys(key for key in keys if key in present)
    matched = matched.union(scalars or ())
    by_pattern = [key for key in available if key in matched and key not in exact]
    if long := next((key for key in (*exact, *by_pattern) if len(key) > MOST_KEY), None):
        raise UpdateOutputError(
            f"update output {long[:40]!r}... has a name of {len(long)} characters; expected at most {MOST_KEY}: give it a"
            " shorter one, or do not track it"
        )
    missing = tuple(dict.fromkeys(key for key in keys if key not in present))
    left = () if scalars is None else tuple(key for key in available if key not in matched and key not in exact)
    return Selection((*exact, *by_pattern), missing, matches, left)


def scalars_among(outputs: Mapping[str, Any]) -> frozenset[str]:
    """Return the keys of flat update outputs that are single numbers, and of those of which there are two, to be refused."""
    return scalars_of(outputs) | {key for key, value in outputs.items() if isinstance(value, Doubled)}


class Selector:
    """Select from the update outputs of every step; a key set is matched once, and then looked up.

    Args:
        keys: the exact keys.
        patterns: the literal substrings.
        scalars: whether every single number is selected too.
    """

    def __init__(self, keys: Sequence[str], patterns: Sequence[str], scalars: bool = False) -> None:
        self._keys, self._patterns, self._scalars = keys, patterns, scalars
        self._forms: dict[tuple[str, ...], list[Any]] = {}  # of the values of each key set, where scalars are selected
        self._selections: dict[tuple[str, ...], Selection] = {}
        self._leaves: set[type] = set()  # what values were of that are no None and no record

    def __call__(self, update_outputs: Any) -> tuple[Mapping[str, Any], Selection]:
        """Return the update outputs, flat, and what is tracked of them.

        Raises:
            UpdateOutputError: see `flatten`; of two entries with one key only if it is tracked.
        """
        if type(update_outputs) is dict:  # a flat one of a known key set needs no other look
            selection = self._known(update_outputs)
            if selection is not None and self._leaves.issuperset({*map(type, update_outputs.values())}):
                return update_outputs, selection
        outputs = flat_outputs(update_outputs)
        if outputs is update_outputs and len(self._leaves) < _MOST:
            self._leaves.update(map(type, outputs.values()))
        selection = self._known(outputs)
        if selection is None:
            if len(self._selections) >= _MOST:
                self._selections.clear()
                self._forms.clear()
            available = tuple(outputs)
            scalars = scalars_among(outputs) if self._scalars else None
            selection = self._selections[available] = select(self._keys, self._patterns, available, scalars)
            if self._scalars:
                self._forms[available] = forms_of(outputs.values())
        return outputs, selection

    def _known(self, outputs: Mapping[str, Any]) -> Selection | None:
        """Return what was selected of outputs like these before; None if there were none."""
        selection = self._selections.get(available := tuple(outputs))
        if not self._scalars or selection is None:
            return selection
        return selection if are_alike(self._forms[available], forms_of(outputs.values())) else None


class Doubled:
    """Stand for two entries that flatten to one key: an error, but only where somebody asks for it."""

    def __init__(self, key: str) -> None:
        self.key = key

    def error(self) -> UpdateOutputError:
        """Return what to raise."""
        return UpdateOutputError(f"two update outputs flatten to the key {self.key!r}; rename one of them")


def flatten(update_outputs: Any) -> Mapping[str, Any]:
    """Return nested update outputs as one dict, keys joined by `/`. A value of None is left out: it is not there this step.

    Records (`noether_core.records`) are taken as dicts of their fields; a name that is no string is spelled as one. What stands
    for an array (an `nnx.Variable`) is replaced by it. A dict that is flat is returned itself.

    Raises:
        UpdateOutputError: for what is no record, or two entries that flatten to one key.

    >>> flatten({"loss": 1.0, "layers": {0: 2.0, 1: None}})
    {'loss': 1.0, 'layers/0': 2.0}
    """
    outputs = flat_outputs(update_outputs)
    for value in outputs.values():
        if isinstance(value, Doubled):
            raise value.error()
    return outputs


def flat_outputs(update_outputs: Any) -> Mapping[str, Any]:
    """Return what `flatten` does, but with a `Doubled` where two entries have one key: it may be one that nobody tracks."""
    items = items_of(update_outputs)
    if items is None:
        many = "for several accumulation steps write a list of dicts, for one a dict"
        raise UpdateOutputError(
            f"update_outputs is {type(update_outputs).__name__}; expected a dict, or another record such as a NamedTuple or a"
            " dataclass, from names to scalars or arrays (or None): "
            + (many if isinstance(update_outputs, tuple) else "return a dict from the training step")
        )
    if isinstance(update_outputs, Mapping) and set(map(type, update_outputs)) <= {str}:
        kinds = set(map(type, update_outputs.values()))
        if NoneType not in kinds and not any(is_record_type(kind) or is_box_type(kind) for kind in kinds):
            return update_outputs  # as most are: the walk would cost more than all that follows
    flat: dict[str, Any] = {}
    _flatten_into(flat, items, "", (id(update_outputs),))
    return flat


def _flatten_into(flat: dict[str, Any], items: Iterable[tuple[Any, Any]], prefix: str, within: tuple[int, ...]) -> None:
    for name, found in items:
        key = prefix + (str.__str__(name) if isinstance(name, str) else str(name))
        value, nested = _opened(found, within)
        if nested is not None:
            _flatten_into(flat, nested, key + "/", (*within, id(value)))
        elif value is not None:
            flat[key] = Doubled(key) if key in flat else value


def _opened(value: Any, within: tuple[int, ...]) -> tuple[Any, Iterable[tuple[Any, Any]] | None]:
    """Return a value, or what it stands for, and the items of a record; None for what is none.

    A record that cannot be read, or has no end, is left as an object, which is refused where it is tracked.
    """
    try:
        inner = value.get_value() if is_box_type(type(value)) else value
        items = items_of(inner) if id(inner) not in within and len(within) < _DEEPEST else None
        return inner, None if items is None else list(items)
    except Exception:
        return value, None


def unstack(update_outputs: Any, steps: int) -> list[dict[str, Any]]:
    """Return the update outputs of each of several steps, from arrays with a leading axis of steps.

    What is no array is the same in every step.

    Raises:
        UpdateOutputError: for an array without that axis; see also `flatten`.

    >>> import numpy as np
    >>> unstack({"loss": np.array([1, 2], "int8"), "lr": 0.5}, 2)
    [{'loss': np.int8(1), 'lr': 0.5}, {'loss': np.int8(2), 'lr': 0.5}]
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UpdateOutputError(f"run.step got steps={steps!r}; expected an int of at least 1")
    columns = {}
    for key, value in flatten(update_outputs).items():
        shape = getattr(value, "shape", None)
        if shape is None:
            columns[key] = [value] * steps
        elif not len(shape) or shape[0] != steps:
            raise UpdateOutputError(
                f"update output {key!r} has shape {tuple(shape)}, and steps={steps} expects a leading axis of {steps} steps;"
                " stack the steps' values, as jax.lax.scan does, or leave steps out"
            )
        else:
            columns[key] = _slices(key, value)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)] or [{}] * steps


def _slices(key: str, value: Any) -> list[Any]:
    """Return an array's slices along its leading axis: of every library in few operations."""
    try:
        return list(value)
    except RuntimeError as error:
        raise UpdateOutputError(
            f"update output {key!r} is {type(value).__name__}, which cannot be taken apart along its leading axis of steps,"
            " perhaps for it is spread over processes along it; expected an array of which this process has every step: give"
            " the steps one by one"
        ) from error


def missing_key_message(absent: Sequence[str], available: Sequence[str]) -> str:
    """Return what to tell a user whose exact keys are not among the update outputs."""
    subject = f"key {absent[0]!r} is" if len(absent) == 1 else f"keys {listing(absent)} are"
    hints = {hint for key in absent if (hint := _parts(key, available) or suggest(key, available))}
    return (
        f"{subject} not among the update outputs, which have {listing(available)}.{''.join(sorted(hints))}"
        " One that is None counts as absent. Correct the name, or set missing: warn or missing: skip for an output that comes"
        " only at times"
    )


def _parts(key: str, available: Sequence[str]) -> str:
    """Return what to tell of the name of a dict in the update outputs."""
    prefix = key.rstrip("/") + "/"
    found = [each for each in available if each.startswith(prefix)]
    if not found:
        return ""
    return f" There are {listing(found, 3)}: for all that contain it write a config with patterns: [{prefix!r:.200}]."


def require(selection: Selection, available: Sequence[str]) -> None:
    """Raise `MissingKeyError` if an exact key is absent; the message lists what was there and the closest match."""
    if selection.missing:
        raise MissingKeyError(missing_key_message(selection.missing, available))


def weight_of(name: str | None, outputs: Mapping[str, Any]) -> Any:
    """Return the update output that weighs the others; None if a config names none.

    Raises:
        MissingKeyError: if it is not there.
    """
    if name is not None and name not in outputs:
        raise MissingKeyError(
            f"the weight {name!r} is not among the update outputs, which have {listing(outputs)}.{suggest(name, outputs)}"
            " It must be there at every step that has tracked values: correct the name, or return it"
        )
    return None if name is None else outputs[name]
