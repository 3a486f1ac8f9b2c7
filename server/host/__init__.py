"""The machine that the process runs on: memory, threads, limits, pauses that leave the cores to the engine."""
