"""Save what a terminal shows as an SVG picture."""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, RenderableType


def save_svg(screen: RenderableType, path: Path, title: str, width: int | None = None) -> None:
    """Save a screen as an SVG that loads nothing from elsewhere.

    Args:
        screen: what to show.
        path: the file; its directory is made if need be.
        title: what stands above the screen.
        width: the screen's columns; None: as many as it needs, up to 160.
    """
    picture = Console(record=True, width=160, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    picture.width = width or picture.measure(screen).maximum
    picture.print(screen)
    self_contained = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save_svg(str(path), title=title, code_format=self_contained)
