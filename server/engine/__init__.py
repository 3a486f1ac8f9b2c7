"""The serving engine: one thread that advances sequences over one trunk and many heads. Read work/request.py first, then engine.py.

    engine.py       the loop, and what other threads may call
    requests.py     the open requests: how they are admitted, and how they end
    step.py         a step's work: trunk, heads, sampler and scorer
    ahead.py        the next step, launched on a GPU before the present one is read
    outbox.py       a step's events, handed over in one call
    build.py        puts an engine together
    work/           what moves through it, plain data
    schedule/       what a step computes
    blocks/         what is kept between steps
    layers/         how a trunk and heads run: torch/ in torch's calls, cuda/ for CUDA devices alone
    compiled/       layers in machine code, on the CPU, in float32 and int8
"""
