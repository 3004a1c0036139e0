"""Draw runs and comparisons as one page of HTML that needs no network."""

from noether_core.report.report import write_report

__all__ = ["write_report"]
