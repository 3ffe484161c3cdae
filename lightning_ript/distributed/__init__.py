"""Several processes: how they share parameters, and the strategy that does."""
