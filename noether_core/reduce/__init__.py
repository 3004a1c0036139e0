"""REDUCE, keys and intervals: `plan` says where values go, `accumulate` takes them, `finish` computes the numbers."""
