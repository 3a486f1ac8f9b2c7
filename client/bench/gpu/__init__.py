"""The benchmark of a GPU: one process, random weights, our engine beside transformers."""
