"""Make the pictures of `docs/report.md` in a real browser: `python -m tests.report_pictures`, after `make demo`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from browser import Browser, find_browser
from report_cases import comparison, make_runs

from noether_core.report import write_report

ROOT = Path(__file__).parents[1]
LIGHTS = {"light": False, "dark": True}
SIZES = {"desktop": (1280, 1000, 1.0), "phone": (390, 844, 2.0)}


def take(browser: Browser, page: Path, name: str, part: str = "") -> None:
    """Take a page's picture at each size, light and dark: of its top, or of one of its parts."""
    for size, (width, height, scale) in SIZES.items():
        for light, is_dark in LIGHTS.items():
            browser.open(page, width, height, is_dark=is_dark, scale=scale)
            if part:
                browser.run(f"document.getElementById('{part}').scrollIntoView({{behavior: 'instant'}})")
                browser.settle()
            browser.settle()
            file = ROOT / "docs" / f"{name}_{size}_{light}.png"
            browser.picture(file)
            if shutil.which("pngquant"):
                subprocess.run(["pngquant", "--force", "--ext", ".png", "--quality", "70-95", str(file)], check=True)
            print(f"{file.stat().st_size / 1000:.0f} kB: {file}")


def main(demo: Path) -> None:
    """Take all pictures, of the demo's runs in a directory too."""
    program = find_browser()
    if program is None:
        raise SystemExit("there is no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as directory, Browser(program) as browser:
        runs = make_runs(Path(directory))
        page = write_report(runs, Path(directory, "report.html"), comparison())
        take(browser, page, "report")
        take(browser, page, "report_course", "course")
        for workload in ("digits", "airfoil"):
            take(browser, demo / workload / "report.html", f"report_{workload}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"))
