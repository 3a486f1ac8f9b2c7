"""Layers and attention in torch's own calls, for every device and dtype."""
