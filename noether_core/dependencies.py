"""Say which package is missing or too old, and how to install it, before it is used.

Which versions are needed stands in one place, `pyproject.toml`; here it is read from the metadata of what is installed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError
from typing import NamedTuple

from noether_core.errors import MissingDependencyError

DISTRIBUTION = "noether-callbacks"
_DISTRIBUTIONS = {"mlflow": "mlflow-skinny"}  # of modules that are not called as what is installed
# https://packaging.python.org/en/latest/specifications/dependency-specifiers/, as far as our own metadata goes
_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(?P<versions>[^;]*)(;.*\bextra == ['\"](?P<extra>[^'\"]+)['\"])?")
_AT_LEAST = re.compile(r">=\s*(\d+(?:\.\d+)*)")


class _Requirement(NamedTuple):
    """Hold what we need of a package: its name, the versions as a specifier (`>=2.10`), and the extra that brings it."""

    name: str
    versions: str = ""
    extra: str | None = None


def installed_version(distribution: str) -> str | None:
    """Return which version is installed, as its metadata has it, or None. Nothing is imported.

    >>> installed_version("no-such-package") is None
    True
    """
    found = _distribution(distribution)
    return None if found is None else found.version


def own_version() -> str:
    """Return these packages' version; `0+unknown` for a copy of the sources that was not installed."""
    return installed_version(DISTRIBUTION) or "0+unknown"


def require(what: str, *packages: str) -> None:
    """Check, without importing them, that packages are installed and new enough.

    Args:
        what: needs them, for the message: `"the wandb tracker"`.
        packages: the names by which they are imported.

    Raises:
        MissingDependencyError: naming what is needed, what was found, and the extra to install.
    """
    for package in packages:
        needed = _needed(package)
        if not _can_be_found(package):
            found = "it is not installed"
        elif is_too_old(version := installed_version(needed.name) or "", needed.versions):
            found = f"{needed.name} {version} is installed, which is too old"
        else:
            continue
        raise MissingDependencyError(_message(what, needed, found))


@contextlib.contextmanager
def needing(what: str, *packages: str) -> Iterator[None]:
    """Check that packages are installed and new enough, and explain what fails when they are imported inside of it.

    >>> with needing("the picture", "absent"):
    ...     import absent
    Traceback (most recent call last):
    noether_core.errors.MissingDependencyError: the picture needs absent, and it is not installed: pip install 'absent'

    Raises:
        MissingDependencyError: as `require` does; or if the import fails though the versions are right.
    """
    require(what, *packages)
    try:
        yield
    except MissingDependencyError:
        raise
    except ImportError as error:
        needed = next((each for each in packages if each == (error.name or "").partition(".")[0]), packages[0])
        version = installed_version(_needed(needed).name) or "a version of it without metadata"
        found = f"{version} is installed, from which this import failed ({error})"
        raise MissingDependencyError(_message(what, _needed(needed), found)) from error


def is_too_old(version: str, versions: str) -> bool:
    """Return whether a version is below what a specifier asks for at least; what cannot be read is new enough.

    Only the numbers count: a development build of 2.13, as `2.13.0a0+git1` is, has 2.13's functions, or nearly.

    >>> is_too_old("2.9.1+cpu", ">=2.13"), is_too_old("2.13.0a0+git1", ">=2.13"), is_too_old("3", ">=2.13,!=2.14")
    (True, False, False)
    """
    least, numbers = _AT_LEAST.search(versions), re.match(r"\d+(?:\.\d+)*", version)
    if least is None or numbers is None:
        return False
    asked, found = ([int(number) for number in text.split(".")] for text in (least[1], numbers[0]))
    return found + [0] * (len(asked) - len(found)) < asked


def _message(what: str, needed: _Requirement, found: str) -> str:
    if needed.extra is None:
        how = f"pip install '{needed.name}{needed.versions}'"
    else:
        wheel = f"{DISTRIBUTION.replace('-', '_')}-{own_version()}-py3-none-any.whl"
        how = (
            f"install the extra {needed.extra!r}, in a clone of the repository by pip install '.[{needed.extra}]', from the"
            f" wheel by pip install '{wheel}[{needed.extra}]'"
        )
    return f"{what} needs {needed.name}{needed.versions}, and {found}: {how}"


def _needed(package: str) -> _Requirement:
    """Return what our metadata asks of a package: in the extra that brings the least besides it."""
    name = _DISTRIBUTIONS.get(package, package)
    own = _distribution(DISTRIBUTION)
    lines = [] if own is None else own.requires or []
    all_of = [match.group("name", "versions", "extra") for match in map(_REQUIREMENT.match, lines) if match]
    sizes = [extra for _, _, extra in all_of]
    asking = [each for each in all_of if _normal(each[0]) == _normal(name)]
    if not asking:
        return _Requirement(name)
    _, versions, extra = min(asking, key=lambda each: sizes.count(each[2]))
    return _Requirement(name, versions.strip(), extra)


def _normal(name: str) -> str:
    """Return a name as all its spellings have it: https://packaging.python.org/en/latest/specifications/name-normalization/."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _distribution(name: str) -> Distribution | None:
    try:
        return Distribution.from_name(name)
    except PackageNotFoundError:
        return None


def _can_be_found(package: str) -> bool:
    try:
        spec = importlib.util.find_spec(package)
    except ImportError:
        return False
    except ValueError:  # it is loaded, and does not say from where
        return sys.modules.get(package) is not None
    return spec is not None and spec.origin is not None  # a folder of that name, as W&B makes one, has no origin
