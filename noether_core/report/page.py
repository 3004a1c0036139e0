"""Put data, program and style into one page of HTML that may load nothing and run nothing else."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from importlib.resources import files
from typing import Any

from noether_core.report.packing import script_json

_STYLES = ("uplot/uPlot.min.css", "page.css", "parts.css")
_LIBRARY = "uplot/uPlot.iife.min.js"
_PROGRAM = (
    "values.js",
    "theme.js",
    "smoothing.js",
    "charts.js",
    "cards.js",
    "pictures.js",
    "verdict.js",
    "settings.js",
    "page.js",
)


def page(data: Any, name: str) -> bytes:
    """Return the page that draws some data.

    A Content-Security-Policy forbids it every connection, and every script and style but its own, by their SHA-256
    (https://www.w3.org/TR/CSP3/). The data stands in an element that no browser runs; see `script_json`.

    Args:
        data: what `write_report` collects.
        name: what it is.
    """
    style = "\n".join(map(_asset, _STYLES))
    scripts = [_asset(_LIBRARY), '"use strict";\n(() => {\n' + "\n".join(map(_asset, _PROGRAM)) + "\n})();\n"]
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {' '.join(map(_hash, scripts))}",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    parts = {
        "NAME": escape(name),
        "POLICY": policy,
        "STYLE": style,
        "DATA": script_json(data),
        "LIBRARY": scripts[0],
        "PROGRAM": scripts[1],
    }
    pieces = _asset("page.html").split("@@")  # text, name, text, name, …
    pieces[1::2] = [parts[name] for name in pieces[1::2]]
    return "".join(pieces).encode("utf-8")


def _asset(name: str) -> str:
    return files("noether_core.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode('ascii')}'"
