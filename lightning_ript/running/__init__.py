"""What is seen to before a run starts, and while several processes run it."""
