"""What a step computes: which samples advance, and by how many tokens.

    admission.py    whether the queue takes one more request
    shares.py       what callers hold together, shared fairly between principals
    deadlines.py    whether a request can still be in time, asked at the door and in the queue
    pace.py         how long a step takes, learned from the last ones
    turns.py        the order in which waiting samples start, fair among principals
    leases.py       which version of each head a request uses
    scheduler.py    admission into the pools, chunked prefill, decoding and scoring, all together
    scorer.py       which readings a finished sample needs, and what they say
    scored_rows.py  the numbers of a pass, read back together
    follow.py       samples that go on with a newly activated version
"""
