"""Checks made before a run starts, and ranks that watch each other while it runs."""
