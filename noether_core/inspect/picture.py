"""Save what a terminal shows as an SVG picture; borders are drawn as lines, which meet in any font."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.segment import Segment, Segments
from rich.style import Style
from rich.terminal_theme import TerminalTheme

_CELL = (12.2, 24.4)  # what Rich makes the width and the height of a cell
_TOP = 1.5  # where it begins the first
_THICK = {"LIGHT": 1.3, "HEAVY": 2.4}
_SIDES = {"UP": "U", "DOWN": "D", "LEFT": "L", "RIGHT": "R", "VERTICAL": "UD", "HORIZONTAL": "LR"}
# each colour of a text, and a dim foreground, is read well on the ground: 4.5 times its luminance, as WCAG 2 asks
_GROUND, _INK = (41, 41, 41), (222, 224, 222)
_NORMAL = "4b4e55 ec787c 98a84b d0b244 7aa6d2 ba92c2 68a0b3 dee0de"
_BRIGHT = "9a9b99 ff8a8a 5abe78 e09e60 6eb4f5 ff82af 6ebebc fdfdc5"
_MATRIX = '<g class="{unique_id}-matrix">'


def _palette(colours: str) -> list[tuple[int, int, int]]:
    parsed = (bytes.fromhex(each) for each in colours.split())
    return [(red, green, blue) for red, green, blue in parsed]


_THEME = TerminalTheme(_GROUND, _INK, _palette(_NORMAL), _palette(_BRIGHT))


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
    borders, rest = _Borders(), list[Segment]()
    for row, line in enumerate(picture.render_lines(screen, pad=False)):
        rest += [*borders.taken_from(row, line), Segment.line()]
    picture.print(Segments(rest), end="")
    self_contained = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    drawn = self_contained.replace(_MATRIX, f"{borders.svg()}{_MATRIX}")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save_svg(str(path), title=title, theme=_THEME, code_format=drawn)


class _Borders:
    """Collect the lines that characters draw; those that meet become one."""

    def __init__(self) -> None:
        # by direction, place across it, colour and thickness: from where to where
        self._lines: dict[tuple[str, float, str, float], list[tuple[float, float]]] = {}

    def taken_from(self, row: int, line: list[Segment]) -> Iterator[Segment]:
        """Yield a line's segments with spaces for what is drawn."""
        column = 0
        for text, style, control in line:
            kept = []
            for char in text:
                arms = _arms(char)
                for side, weight in arms.items():
                    self._add(side, row, column, _colour(style), _THICK[weight])
                kept.append(" " if arms else char)
                column += cell_len(char)
            yield Segment("".join(kept), style, control)

    def _add(self, side: str, row: int, column: int, colour: str, thick: float) -> None:
        width, height = _CELL
        x, y = (column + 0.5) * width, _TOP + (row + 0.5) * height
        half, at, across = (width / 2, x, y) if side in "LR" else (height / 2, y, x)
        ends = (at - half, at) if side in "LU" else (at, at + half)
        lines = self._lines.setdefault(("H" if side in "LR" else "V", across, colour, thick), [])
        if lines and abs(lines[-1][1] - ends[0]) < 0.01:
            ends = lines.pop()[0], ends[1]
        lines.append(ends)

    def svg(self) -> str:
        """Return the lines as SVG."""
        looks: dict[tuple[str, float], list[str]] = {}
        for (direction, across, colour, thick), lines in self._lines.items():
            for start, end in lines:
                first = f"M{start:g} {across:g}H{end:g}" if direction == "H" else f"M{across:g} {start:g}V{end:g}"
                looks.setdefault((colour, thick), []).append(first)
        return "".join(
            f'<path d="{"".join(parts)}" stroke="{colour}" stroke-width="{thick}" stroke-linecap="square" fill="none"/>'
            for (colour, thick), parts in looks.items()
        )


def _colour(style: Style | None) -> str:
    colour = None if style is None or style.color is None else style.color.get_truecolor(_THEME)
    return (colour or _THEME.foreground_color).hex


def _arms(char: str) -> dict[str, str]:
    """Return which sides of its cell a character draws a line to, and how heavy; none of what is no such character.

    Its name in Unicode says so.

    >>> _arms("┡"), _arms("a")
    ({'D': 'LIGHT', 'R': 'HEAVY', 'U': 'HEAVY'}, {})
    """
    words = unicodedata.name(char, "").removeprefix("BOX DRAWINGS ").replace("ARC ", "").split()
    if not "\u2500" <= char <= "\u257f" or not set(words) <= {*_SIDES, *_THICK, "AND"}:
        return {}
    if words[0] in _THICK:
        words = [*words[1:], words[0]]  # it is that of all
    arms: dict[str, str] = {}
    waiting: list[str] = []
    for word in words:
        waiting += _SIDES.get(word, "")
        if word in _THICK:
            arms |= dict.fromkeys(waiting, word)
            waiting.clear()
    return arms
