"""Draw runs and comparisons as one page of HTML that needs no network; curves also as a picture."""

from noether_core.report.plot import write_plot
from noether_core.report.report import write_report

__all__ = ["write_plot", "write_report"]
