"""Read reports back, and make runs and a comparison whose names would do harm."""

from __future__ import annotations

import base64
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from report_cases import comparison

from noether_core import LogWriter, UpdateCounter
from noether_core.emit.arrays import write_arrays
from noether_core.parity.divergence.result import Comparison

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "__proto__",
    "constructor/prototype",
    "a\u2028b\u2029c",
    "]]>&amp;\"'`${alert(1)}",
    "\u202egnp.x/\x1b[31m",
    "toString/valueOf",
)
DTYPES = {"f": "<f4", "d": "<f8", "B": "u1", "H": "<u2", "I": "<u4"}


class Page(HTMLParser):
    """Read a page as a browser does: its elements with their attributes, and the text of each script and style."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] in ("script", "style") and data.strip():
            self.texts.append((self.elements[-1][0], data))

    @property
    def data(self) -> Any:
        (found,) = [text for kind, text in self.texts if kind == "script" and text.startswith('{"where"')]
        return json.loads(found)

    def attribute(self, tag: str, name: str, value: str, wanted: str) -> str:
        (found,) = [dict(attrs) for each, attrs in self.elements if each == tag and (name, value) in attrs]
        return found[wanted] or ""


def unpack(text: str) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(text[1:]), DTYPES[text[0]])


def log(path: Path, entries: list[dict[str, Any]]) -> Path:
    counter = UpdateCounter()
    writer = LogWriter(path, update_counter=counter)
    for entry in entries:
        counter.next_update()
        for key, value in entry.items():
            (writer.add_nonscalar if isinstance(value, str) else writer.add_scalar)(key, value)
        writer.flush()
    writer.close()
    return path


def hostile_run(directory: Path) -> Path:
    path = log(directory / "<b>run</b>", [{name: 0.5 + at, f"text{at}": name} for at, name in enumerate(HOSTILE)] * 2)
    arrays = {name: np.ones((2, 2), np.float32) for name in HOSTILE}
    write_arrays(path / "update_outputs" / "U1" / "E0_U2_S0.safetensors", arrays)
    (path / "config.yaml").write_text(f"name: {json.dumps(HOSTILE[0])}\n__proto__: {{a: {json.dumps(HOSTILE[1])}}}\n")
    return path


def hostile_comparison() -> Comparison:
    found = comparison()
    (first, *_) = found.differences
    bad = [type(first)(1, "grad", f"grad/{name}", 1.0, 1e-7, shape=name) for name in HOSTILE]
    settings = ({"__proto__": {"polluted": HOSTILE[0]}}, {name: name for name in HOSTILE})
    return type(found)(
        "differs", HOSTILE[0], (HOSTILE[1], HOSTILE[2]), bad[0], tuple(bad), warnings=HOSTILE, settings=settings
    )
