"""Flow-matching policies: how they denoise, what their probabilities are, and LeRobot's format."""
