"""Name and lay out parameters alike, whichever framework they come from."""
