"""Transformers models cut in two: reading a checkpoint, splitting it, checking that the parts compose, merging them again."""
