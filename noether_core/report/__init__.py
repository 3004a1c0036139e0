"""Draw runs and comparisons as one page of HTML that needs no network."""
