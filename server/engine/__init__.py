"""The serving engine: one thread that advances sequences over one trunk and many heads."""
