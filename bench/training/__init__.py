"""Training: trains defenses once, keeps their checkpoints, and loads them."""
