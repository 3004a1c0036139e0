"""Leave out a package, or have it too old: what needs it says so, and what to install."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from wheels import ROOT

from noether_core import MissingDependencyError
from noether_core.dependencies import is_too_old, needing, own_version, require

# what needs a package, the package, what it is installed as, and the extra that has it
FRONT_ENDS = {
    "import noether_jax": ("jax", "jax", "jax"),
    "import noether_torch": ("torch", "torch", "torch"),
}
JAX_PARTS = {
    "import noether_jax.flax": ("flax", "flax", "jax"),
    "import noether_jax.names": ("flax", "flax", "jax"),
    "import noether_jax.optax": ("optax", "optax", "jax"),
}
TORCH_PARTS = {
    "import noether_torch.lightning": ("lightning", "lightning", "lightning"),
    "import noether_torch.transformers": ("transformers", "transformers", "transformers"),
    "import noether_torch.accelerate": ("accelerate", "accelerate", "transformers"),
}
TOOLS = {
    "tracker('tensorboard')": ("tensorboardX", "tensorboardx", "tensorboard"),
    "tracker('wandb')": ("wandb", "wandb", "wandb"),
    "tracker('mlflow')": ("mlflow", "mlflow-skinny", "mlflow"),
    "tracker('trackio')": ("trackio", "trackio", "trackio"),
    "noether_core.export_run('run', 'parquet')": ("pyarrow", "pyarrow", "parquet"),
    "noether_core.read_run('run').to_pandas()": ("pandas", "pandas", "pandas"),
}
GROUPS = {"front-ends": FRONT_ENDS, "JAX": JAX_PARTS, "PyTorch": TORCH_PARTS, "tools": TOOLS}

# Try each statement, and print what it raised.
TRYING = """
import sys
from contextlib import closing
from pathlib import Path

for name in sys.argv[2].split(","):
    if name:
        sys.modules[name] = None  # importing it fails, as if it were not there

import noether_core
from noether_core.emit.trackers import make_tracker

def tracker(kind):
    make_tracker(kind, Path(kind), "name", {})

counter = noether_core.UpdateCounter()
with closing(noether_core.LogWriter("run", update_counter=counter)) as writer:
    counter.next_update()
    writer.add_scalar("loss", 0.5)
for statement in sys.argv[1].splitlines():
    try:
        exec(statement)
    except noether_core.MissingDependencyError as error:
        print(error)
    else:
        print("nothing was raised")
"""


def messages(statements: dict[str, tuple[str, str, str]], missing: bool, directory: Path) -> list[str]:
    """Return what each statement raises, where its package is missing, or of version 0.0.1 by its metadata."""
    for _, distribution, _ in [] if missing else statements.values():
        about = directory / f"{distribution.replace('-', '_')}-0.0.1.dist-info"
        about.mkdir(exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 0.0.1\n", "utf-8")
    blocked = ",".join(package for package, _, _ in statements.values()) if missing else ""
    start = f"import sys; sys.path.insert(0, {str(directory)!r})\n"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", start + TRYING, "\n".join(statements), blocked],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "too old"])
@pytest.mark.parametrize("group", GROUPS)
def test_what_is_missing_or_too_old_is_named(group: str, missing: bool, tmp_path: Path) -> None:
    said = messages(GROUPS[group], missing, tmp_path)
    assert len(said) == len(GROUPS[group])
    for (_, distribution, extra), message in zip(GROUPS[group].values(), said, strict=True):
        assert re.search(rf"needs {distribution}>=[\d.]+, and ", message, re.IGNORECASE), message
        found = "it is not installed" if missing else "0.0.1 is installed, which is too old"
        assert found in message
        assert f"install the extra '{extra}'" in message
        assert f"pip install '.[{extra}]'" in message
        assert f"pip install 'noether_callbacks-{own_version()}-py3-none-any.whl[{extra}]'" in message


def test_a_package_that_fails_to_import_is_not_called_missing() -> None:
    with (
        pytest.raises(
            MissingDependencyError, match=r"needs numpy.* is installed, from which this import failed \(cannot"
        ),
        needing("the picture", "numpy"),
    ):
        from numpy import no_such_function  # noqa: F401
    with pytest.raises(ZeroDivisionError), needing("the picture", "numpy"):
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("version", "needed", "expected"),
    [
        ("2.13.0", ">=2.13", False),
        ("2.13", ">=2.13.0", False),
        ("2.12.9", ">=2.13", True),
        ("2.9.0", ">=2.13", True),
        ("10.0", ">=2.13", False),
        ("2.13.0+cpu", ">=2.13", False),
        ("2.13.0a0+git1234", ">=2.13", False),
        ("0.12.7", "<1,>=0.12.8", True),
        ("1.0", "", False),
        ("", ">=1.0", False),
        ("unknown", ">=1.0", False),
    ],
)
def test_versions_are_compared_as_numbers(version: str, needed: str, expected: bool) -> None:
    assert is_too_old(version, needed) is expected


def test_what_is_there_and_new_enough_is_not_spoken_of() -> None:
    require("the tests", "numpy", "pytest", "mlflow")


def test_nothing_tells_to_install_from_an_index_what_is_not_there() -> None:
    """The packages are on no index, so that a clone or the wheel is what can be installed."""
    name = re.compile(r"pip install[^\n]*(?<![/\w])noether[-_]callbacks(?![\w-]*\.whl|-\d|-\*|-\{)")
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    folders = [*ROOT.glob("noether_*/"), ROOT / "examples", ROOT / "benchmarks"]
    sources = [path for folder in folders for path in folder.rglob("*.py")]
    said = [
        f"{path.name}: {found[0]}" for path in [*pages, *sources] for found in name.finditer(path.read_text("utf-8"))
    ]
    assert not said, "\n".join(said)
    assert name.search("run pip install 'noether-callbacks[jax]'")
    assert not name.search("run pip install 'noether_callbacks-0.1.0-py3-none-any.whl[jax]'")
