"""Check what `make lint` does not: files and functions stay short, and public names are listed by the packages."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("noether_core", "noether_jax", "noether_parity", "noether_torch")
SOURCES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def functions(source: str) -> Iterator[tuple[str, int]]:
    """Yield each function of a module and how many lines it has, from its `def` on, docstring and all."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def test_a_functions_lines_are_counted() -> None:
    source = (
        "class A:\n    @property\n    def f(self):\n        '''Say it.'''\n\n        return 1\nasync def g():\n    pass"
    )
    assert sorted(functions(source)) == [("f", 4), ("g", 2)]


def test_no_file_has_more_than_300_lines() -> None:
    long = [f"{path}: {n}" for path, source in SOURCES.items() if (n := len(source.splitlines())) > 300]
    assert not long, "\n".join(long)


def test_no_function_has_more_than_40_lines() -> None:
    long = [f"{path}: {name}: {n}" for path, source in SOURCES.items() for name, n in functions(source) if n > 40]
    assert not long, "\n".join(long)


def test_public_names_are_listed_by_packages_alone() -> None:
    listing = {path for path, source in SOURCES.items() if "\n__all__ = " in source}
    assert {f"{package}/__init__.py" for package in PACKAGES} <= listing
    assert all(path.endswith("/__init__.py") for path in listing)


def test_the_doctests_of_every_package_run() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert (
        set(settings["pytest"]["ini_options"]["testpaths"])
        >= set(settings["importlinter"]["root_packages"])
        == set(PACKAGES)
    )
