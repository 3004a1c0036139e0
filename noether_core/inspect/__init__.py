"""Look at runs and configs in the terminal."""
