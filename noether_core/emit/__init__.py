"""EMIT: log entries, the run directory with its reader, and trackers. Everything here is on the host already."""
