"""What a terminal shows while a run is busy."""
