"""Make the pictures of `docs/plot.md` in a real browser: `python -m tests.plot_pictures`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from browser import Browser, find_browser
from report_pictures import LIGHTS, ROOT

from noether_core import LogWriter, UpdateCounter
from noether_core.report import write_plot

UPDATES = 2000
RATES = {"lr-3e-4": 1.0, "lr-1e-3": 2.2, "lr-1e-2": 3.4}
SIZES = {"desktop": (1280, 900, 1.0), "phone": (390, 844, 2.0)}


def make_runs(directory: Path) -> list[Path]:
    """Write runs as three learning rates may give them, the largest of which fails for a while, and return their paths."""
    paths = []
    for place, (name, rate) in enumerate(RATES.items()):
        random = np.random.default_rng(place)
        counter = UpdateCounter(updates_per_epoch=250, effective_batch_size=32)
        writer = LogWriter(directory / name, update_counter=counter)
        for update in range(1, UPDATES + 1):
            counter.add_samples(32)
            counter.next_update()
            if update % 250 == 0:
                counter.next_epoch()
            fall = np.exp(-rate * update / 700)
            noise = random.standard_normal(3)
            is_lost = name == "lr-1e-2" and 900 <= update < 1000
            loss = 0.12 * place + 2.1 * fall + (0.06 + 0.25 * fall) * abs(noise[0])
            writer.add_scalar("train/loss", float("nan") if is_lost else float(loss))
            writer.add_scalar(
                "train/accuracy", float(np.clip(0.94 - 0.03 * place - 0.8 * fall + 0.03 * noise[1], 0, 1))
            )
            writer.add_scalar(
                "grad/norm", float((0.3 + fall) * np.exp(0.35 * noise[2]) * (30 if update == 640 + place else 1))
            )
            writer.add_scalar("lr", float(3e-4 * rate * min(1, update / 100) * (1 - update / UPDATES)))
            if update % 50 == 0:
                writer.add_scalar("eval/loss", float(0.12 * place + 2.1 * fall + 0.15 + 0.02 * noise[1]))
                writer.add_scalar("eval/accuracy", float(np.clip(0.91 - 0.03 * place - 0.8 * fall, 0, 1)))
            writer.flush()
        writer.close()
        paths.append(directory / name)
    return paths


def main() -> None:
    """Take all pictures."""
    program = find_browser()
    if program is None:
        raise SystemExit("there is no Chromium here: apt-get install chromium")
    with tempfile.TemporaryDirectory() as directory, Browser(program) as browser:
        outer = Path(directory, "sweep")
        page = write_plot(make_runs(outer), outer / "plot.html", smooth=1)
        for size, (width, height, scale) in SIZES.items():
            for light, is_dark in LIGHTS.items():
                browser.open(page, width, height, is_dark=is_dark, scale=scale)
                file = ROOT / "docs" / f"plot_{size}_{light}.png"
                browser.picture(file)
                if shutil.which("pngquant"):
                    command = ["pngquant", "--force", "--ext", ".png", "--quality", "70-95", str(file)]
                    subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
