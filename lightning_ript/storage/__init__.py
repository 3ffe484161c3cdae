"""Where a run's files lie, how they are written, and the hub."""
