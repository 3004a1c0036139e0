"""Run `noether-parity` as `python -m noether_core`."""

from noether_core.cli import main
from noether_core.ctrl_c import run_command

if __name__ == "__main__":
    run_command(main)
