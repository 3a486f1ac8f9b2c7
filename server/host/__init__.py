"""What the process asks of the machine that it runs on: memory, threads, pauses that leave the cores to the engine."""
