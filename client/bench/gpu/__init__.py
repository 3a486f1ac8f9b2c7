"""The benchmark of a GPU: one process, random weights, our engine beside transformers; what is predicted of it; a first run in parts."""
