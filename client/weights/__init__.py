"""Weights as trainers hold them, sorted, compared and written for a push. Imports no torch."""
