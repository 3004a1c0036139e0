r"""Write text and names under which a format means something else, or which it cannot hold, so that they read back exactly.

In a line, the strings "NaN", "Infinity" and "-Infinity" are floats: such a text, behind any number of backslashes, is written
with one backslash more. In an array file, a name that safetensors reserves or cannot hold is written as `noether-name:` and
its characters as Python's `unicode_escape`.
"""

from __future__ import annotations

import math

_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_ENDS = tuple(_FLOATS)
_MARK = "noether-name:"


def escaped_text(text: str) -> str:
    r"""Return what stands for a text in a line.

    >>> escaped_text("NaN"), escaped_text("\\NaN"), escaped_text("a NaN")
    ('\\NaN', '\\\\NaN', 'a NaN')
    """
    return "\\" + text if text.endswith(_ENDS) and text.lstrip("\\") in _FLOATS else text


def text_or_float(found: str) -> str | float:
    r"""Return what a string of a line stands for.

    >>> text_or_float("NaN"), text_or_float("\\NaN"), text_or_float("a NaN")
    (nan, 'NaN', 'a NaN')
    """
    if not found.endswith(_ENDS):
        return found
    if found in _FLOATS:
        return _FLOATS[found]
    return found[1:] if found.startswith("\\") and found.lstrip("\\") in _FLOATS else found


def escaped_name(name: str) -> str:
    r"""Return what an array is called in a file.

    >>> escaped_name("loss"), escaped_name("__metadata__"), escaped_name("a\ud800")
    ('loss', 'noether-name:__metadata__', 'noether-name:a\\ud800')
    """
    if name != "__metadata__" and not name.startswith(_MARK) and not any("\ud800" <= each <= "\udfff" for each in name):
        return name
    return _MARK + name.encode("unicode_escape").decode("ascii")


def name_of(found: str) -> str:
    """Return the name of an array that is called so in a file."""
    escaped = found.removeprefix(_MARK)
    if escaped == found or not escaped.isascii():
        return found
    try:
        return escaped.encode("ascii").decode("unicode_escape")
    except UnicodeDecodeError:
        return found  # no name of ours
