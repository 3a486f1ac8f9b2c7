"""The serving engine: one thread that advances sequences over one trunk and many heads. Read sequence.py, then engine.py from `step` on.

What moves through it, plain data:
    sequence.py     requests, their samples, the sequences under them, and readings: one head version's way along one sequence
    live.py         heads with their weights in memory, and the active set
    batch.py        what one step computes
    block.py        a run of tokens and what hangs on it
    reports.py      limits that it is told, counters that it keeps

What a step does, in this order:
    engine.py       the loop; all that other threads may ask of it
    admission.py    whether the queue takes one more request
    shares.py       what of a thing each principal may hold
    turns.py        in which order waiting samples start
    deadlines.py    who could be in time, and whom one more row would make late
    pace.py         how long steps take and replies become
    scheduler.py    who advances in a step, and by how much
    trunk.py        the trunk over the step's new tokens
    heads.py        one head over its readings
    sampler.py      draws next tokens
    tokens.py       what one more token does to a sample
    scorer.py       which readings a finished sample needs, and what they say
    follow.py       samples that go on with a newly activated version
    gaps.py         how long a step kept everybody waiting

What is kept between steps:
    blocks.py       the tree of blocks: which slot holds which tokens
    head_pool.py    slots for heads' own keys and values
    cache.py        the tensors behind both
    commit.py       takes their memory from the kernel before they are written

How layers run:
    attention.py    over blocks, for transformers' own modules and for torch_stack.py
    fast.py         our own layers for the llama-like families: a trunk, and heads on it
    llama.py        takes such a layer's weights out of transformers' modules
    kits.py         what fast.py asks of a way to hold and run weights; compiled/ is one, torch_stack.py the other
    compiled/       on the CPU, in float32 and int8: machine code
    torch_stack.py  on a GPU, and in 16 bits: torch's calls, with weights from linears.py (dense.py, eight_bit.py)
    hadamard.py     spreads large numbers before rows become int8
    varlen.py       on a GPU, attention in one call a layer, tried by varlen_probe.py before it serves
    graphs.py       on a GPU, recorded decode steps
    upload.py       a step's numbers on their way to the device
    threads.py      how many threads torch uses

    build.py        puts an engine together
"""
