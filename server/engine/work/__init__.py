"""What moves through the engine, plain data.

    request.py      requests, their samples, and readings: one head version's way along one token sequence
    sequence.py     token ids on their way through the trunk
    block.py        a run of tokens and the slot of what was computed for them
    live.py         heads with their weights in memory, the active set, and the lease on it
    sampling.py     how tokens are drawn, and why drawing ended
    questions.py    rule questions as token ids
    pooling.py      one row of states for a whole prompt
    reader.py       who gets results, and how much may stay unread
    events.py       the kinds of results
    batch.py        what one step computes
    tokens.py       what one more token does to a sample
    gaps.py         the longest time between two steps
    reports.py      limits of the queue, and the engine's counters
"""
