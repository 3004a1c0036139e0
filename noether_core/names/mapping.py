"""Read a mapping file: which Flax module or array is which of PyTorch's, where nothing else tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noether_core.config.yaml_file import parse_yaml
from noether_core.errors import ConfigFileError, RunFormatError
from noether_core.names.layout import Layout, Shape, flattened
from noether_core.names.units import FRAMEWORKS
from noether_core.regular_files import read_regular

_MOST_BYTES = 2**20  # of a file
_FORMS = (
    "a {1} path, a list of paths whose rows follow each other, or {{path: …}} with `channels: N` for a linear layer after a "
    "flattened image of N channels, or `axes: [...]`, the axis of {1}'s array that each of {0}'s is"
)


@dataclass(frozen=True)
class Rule:
    """Hold one line of a mapping.

    Attributes:
        paths: what the name is in Flax: one module or array, or several arrays whose rows follow each other.
        channels: how many channels the image has that is flattened before this linear layer; 0 if there is none.
        axes: which axis of Flax's array each axis of PyTorch's is; empty if the layers' kinds say it.
    """

    paths: tuple[str, ...]
    channels: int = 0
    axes: tuple[int, ...] = ()

    def layout(self, shape: Shape) -> Layout | None:
        """Return the layout that this rule gives an array of Flax's, or None if it gives none."""
        if self.axes and sorted(self.axes) == list(range(len(shape))):
            return Layout(shape, shape, self.axes, tuple(shape[axis] for axis in self.axes))
        if self.channels and len(shape) == 2 and shape[0] % self.channels == 0:
            return flattened(shape, self.channels)
        return None


def read_mapping(
    mapping: str | Path | Mapping[str, Any] | None, sides: tuple[str, str] = FRAMEWORKS
) -> dict[str, Rule]:
    """Return a mapping's rules by PyTorch's name, of a module or of an array.

    Args:
        mapping: a YAML or JSON file, or what it would hold: for each name a Flax path, a list of paths whose rows follow each
            other, or a path with its layout.
        sides: what messages call the two models.

    Raises:
        ConfigFileError: for a file that cannot be read, or a line that is no rule.

    >>> read_mapping({"head": "Dense_2", "fc.weight": {"path": "Dense_0/kernel", "channels": 8}})["fc.weight"].channels
    8
    """
    if mapping is None:
        return {}
    where, forms = "mapping", _FORMS.format(*sides)
    if isinstance(mapping, str | Path):
        where = str(mapping)
        mapping = parse_yaml(_text(Path(mapping)), where)
    if not isinstance(mapping, Mapping):
        raise ConfigFileError(
            f"{where} holds a {type(mapping).__name__}; expected {sides[0]}'s names, each with {forms}"
        )
    return {str(name): _rule(str(name), rule, where, forms) for name, rule in mapping.items()}


def _text(path: Path) -> str:
    try:
        return read_regular(path, _MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError, RunFormatError) as error:
        problem = f"the mapping file {str(path)!r} cannot be read: {error}; give a YAML or JSON text file"
        raise ConfigFileError(problem) from error


def _rule(name: str, rule: Any, where: str, forms: str) -> Rule:
    if isinstance(rule, str) and rule:
        return Rule((rule,))
    if isinstance(rule, list) and rule and all(isinstance(path, str) for path in rule):
        return Rule(tuple(rule))
    if isinstance(rule, dict) and isinstance(rule.get("path"), str) and len(rule) == 2:
        channels, axes = rule.get("channels"), rule.get("axes")
        if type(channels) is int and channels > 0:
            return Rule((rule["path"],), channels)
        if isinstance(axes, list) and axes and all(type(axis) is int for axis in axes):
            return Rule((rule["path"],), axes=tuple(axes))
    raise ConfigFileError(f"{where}: {name!r} has {rule!r:.200}; expected {forms}")
