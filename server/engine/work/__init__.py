"""What moves through the engine, plain data.

    sequence.py     requests, their samples, the sequences under them, and readings: one head version's way along one sequence
    live.py         heads with their weights in memory, and the active set
    batch.py        what one step computes
    tokens.py       what one more token does to a sample
    gaps.py         how long a step kept everybody waiting
    reports.py      limits that the engine is told, counters that it keeps
"""
