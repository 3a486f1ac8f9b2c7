"""Reinforcement learning of a served policy: rollouts by Generate, updates on boundary states, and an activation after each."""
