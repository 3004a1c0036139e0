"""Run `noether-parity` as `python -m noether_core`."""

from noether_core.cli import main

if __name__ == "__main__":
    main()
