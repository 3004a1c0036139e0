"""Hold the site together: its navigation, its links, and an entry for every public name; with `--full`, build it."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from browser import Browser, find_browser

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
BESIDE = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")  # `docs/hooks.py` gives these to the site
PAGES = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))}
PAGES |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", *BESIDE)}
PACKAGES = ("noether_core", "noether_jax", "noether_torch")
LISTED = {
    **dict.fromkeys(PACKAGES, "api/{}.md"),
    **{
        f"noether_core.{part}": "api/parity.md"
        for part in ("parity", "parity.between_runs", "parity.divergence", "probes", "names", "report")
    },
}
ENTRY = re.compile(r"^::: ([\w.]+)$", re.MULTILINE)


def in_navigation(part: Any) -> Iterator[str]:
    """Yield the pages of a part of the navigation."""
    if isinstance(part, str):
        yield part
    else:
        for below in part.values() if isinstance(part, dict) else part:
            yield from in_navigation(below)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def anchors(text: str) -> set[str]:
    """Return what a page's headings and its entries of the API are called in an address."""
    found = set(ENTRY.findall(text))
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        plain = re.sub(r"[^\w\s-]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading))
        found.add(re.sub(r"[-\s]+", "-", plain.strip().lower()))
    return found


def test_the_navigation_has_every_page_once() -> None:
    pages = list(in_navigation(SITE["nav"]))
    assert sorted(pages) == sorted(
        {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")} | {*BESIDE}
    )


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_is_there(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[name])):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / name).parent / path if path else ROOT / name
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(PAGES[there.resolve().relative_to(ROOT).as_posix()]), target


@pytest.mark.parametrize("package", LISTED)
def test_every_public_name_has_an_entry(package: str) -> None:
    text = PAGES["docs/" + LISTED[package].format(package)]
    module = importlib.import_module(package)
    shared = importlib.import_module("noether_core")
    for name in module.__all__:
        own, core = f"::: {package}.{name}\n", f"[{name}](noether_core.md#noether_core.{name})"
        assert own in text or (core in text and getattr(shared, name) is getattr(module, name)), f"{package}.{name}"


@pytest.mark.parametrize("name", [name for name in PAGES if ENTRY.search(PAGES[name])])
def test_every_entry_is_of_a_name_that_is_there(name: str) -> None:
    entries = ENTRY.findall(PAGES[name])
    assert len(entries) == len(set(entries))
    for entry in entries:
        module, _, attribute = entry.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), entry


def test_every_callback_has_a_heading_and_an_example() -> None:
    kinds = {name.removesuffix("Config") for name in importlib.import_module("noether_core").__all__}
    kinds = {kind for kind in kinds if kind.endswith("Callback")} - {"PeriodicCallback"}
    sections = {part.partition("\n")[0]: part for part in PAGES["docs/callbacks.md"].split("\n## ")[1:]}
    assert set(sections) == kinds
    assert all("```python\n" in section for section in sections.values())


def test_every_field_of_the_config_has_a_row() -> None:
    from noether_core import TrackAdditionalOutputsCallbackConfig

    rows = {
        name for row in re.findall(r"^\| (`.*?) \|", PAGES["docs/config.md"], re.MULTILINE) for name in row.split("`")
    }
    fields = set(TrackAdditionalOutputsCallbackConfig.model_fields) - {"kind", "name", "batch_size"}
    assert fields <= rows


def search(browser: Browser, page: Path) -> None:
    """Search in a page that is opened from the disk, and see that pages are found and nothing is fetched."""
    browser.open(page)
    field = "document.querySelector('.md-search__input').getBoundingClientRect()"
    x, y = browser.run(f"[{field}.x + 20, {field}.y + 10]")
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    browser.call("Input.insertText", text="every_n_updates")
    browser.until("document.querySelectorAll('.md-search-result__item').length > 2")
    assert [each for each in browser.requests() if not each.startswith(("file:", "data:", "blob:"))] == []
    assert browser.complaints() == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="make site installs what builds the site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|source|iframe)[^>]*?(?:src|srcset)=\"?(https?:)?//", text)
        assert not fetched, page
        assert not re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect)[^>]*https?://", text), page
    if (program := find_browser()) is not None:
        with Browser(program) as browser:
            search(browser, tmp_path / "site" / "index.html")
    for entry in {entry for text in PAGES.values() for entry in ENTRY.findall(text)}:
        assert any(f'id="{entry}"' in page.read_text(encoding="utf-8") for page in (tmp_path / "site/api").iterdir()), (
            entry
        )
