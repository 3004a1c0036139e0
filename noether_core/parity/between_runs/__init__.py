"""Compare two runs from their directories, make their twins, and assert in a test that they are the same training."""
