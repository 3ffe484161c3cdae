"""What the benchmarks share: the ways that are compared, their clocks, and their reports."""
