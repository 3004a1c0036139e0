"""Show each entry as a line on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rich.console import Console
from rich.text import Text

from noether_core.schedule import UNITS
from noether_core.text import inert, number


class ConsoleTracker:
    """Print entries, one line each, between the program's own lines: it is called by the training itself.

    Args:
        console: where to; by default standard output.
    """

    inline: ClassVar[bool] = True

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False)

    def log(self, entry: Mapping[str, Any]) -> None:
        """Print one entry."""
        line = Text("_".join(f"{unit[0].upper()}{entry[unit]}" for unit in UNITS), style="bold")
        for key, value in entry.items():
            if key not in UNITS:
                line.append(f"  {inert(key)} ", style="dim").append(number(value), style="default")
        self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Do nothing: every line is out already."""
