"""What comes out of finished runs: summaries, sweeps over checkpoints, comparisons, charts."""
