"""Make the pictures of `docs/report.md` in a real browser: `python -m tests.report_pictures`, after `make demo`.

They are of the demo's own pages, and of a port that is not mended yet: `examples/port` as `docs/compare.md` has it before its
last step, with a twin.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from browser import Browser, find_browser
from test_port import program

from noether_core.parity.between_runs import calibrate, compare_trainings
from noether_core.report import write_report

ROOT = Path(__file__).parents[1]
LIGHTS = {"light": False, "dark": True}
SIZES = {"desktop": (1280, 1000, 1.0), "phone": (390, 844, 2.0)}
MENDED = 2  # of the port's three bugs; weight decay is the third


def port_page(directory: Path) -> Path:
    """Train the original, its twin and the port, compare them, and return the page of it."""
    original, port = directory / "port" / "torch", directory / "port" / "jax"
    command = [sys.executable, "-m", "examples.port.train_torch", str(original)]
    subprocess.run(command, cwd=ROOT, check=True)
    calibrate(original, command, number=1)  # it works in this directory
    sys.argv = ["train_jax", str(port)]
    exec(compile(program(MENDED), "train_jax.py", "exec"), {"__name__": "__main__"})
    found = compare_trainings(original, port)
    print(found.sentence)
    return write_report([original, port], directory / "port" / "report.html", found)


def take(browser: Browser, page: Path, name: str, out: Path, part: str = "") -> None:
    """Take a page's picture at each size, light and dark: of its top, or of one of its parts."""
    for size, (width, height, scale) in SIZES.items():
        for light, is_dark in LIGHTS.items():
            browser.open(page, width, height, is_dark=is_dark, scale=scale)
            if part:
                browser.run(f"document.getElementById('{part}').scrollIntoView({{behavior: 'instant'}})")
                browser.settle()
            browser.settle()
            file = out / f"{name}_{size}_{light}.png"
            browser.picture(file)
            if shutil.which("pngquant"):
                subprocess.run(["pngquant", "--force", "--ext", ".png", "--quality", "70-95", str(file)], check=True)
            print(f"{file.stat().st_size / 1000:.0f} kB: {file}")


def main(demo: Path, out: Path) -> None:
    """Take all pictures, of the demo's runs in a directory too."""
    program = find_browser()
    if program is None:
        raise SystemExit("there is no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as directory, Browser(program) as browser:
        page = port_page(Path(directory))
        take(browser, page, "report_port", out)
        take(browser, page, "report_port_course", out, "course")
        take(browser, demo / "digits" / "report.html", "report_digits", out)
        take(browser, demo / "airfoil" / "report.html", "report_airfoil", out, "arrays")


if __name__ == "__main__":
    given = [Path(each) for each in sys.argv[1:3]]
    main(given[0] if given else Path("runs/demo"), given[1] if len(given) > 1 else ROOT / "docs")
