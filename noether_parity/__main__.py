"""Run `noether-parity` as `python -m noether_parity`."""

from noether_parity import main

if __name__ == "__main__":
    main()
