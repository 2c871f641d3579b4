"""Training: memory by kind, and compute."""
