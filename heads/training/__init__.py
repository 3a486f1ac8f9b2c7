"""Training of heads on boundary states from a running server: loop, losses, checkpoints, metrics. The trainer never holds the trunk."""
