"""Training: the loop and what it needs, and a run from start to end."""
