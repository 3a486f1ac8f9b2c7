"""Adapters for other people's trainers. Each takes what the trainer hands it and imports nothing of it."""
