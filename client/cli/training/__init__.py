"""`polyhead train`: one command for each kind of head, and reinforcement learning."""
