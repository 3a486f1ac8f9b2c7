"""The serving engine: one thread that advances sequences over one trunk and many heads. Read work/request.py first, then engine.py.

    engine.py       the loop; all that other threads may ask of it
    build.py        puts an engine together
    work/           what moves through it, plain data
    schedule/       who advances in a step, and by how much
    blocks/         what is kept between steps
    layers/         how a trunk and heads run: torch/ in torch's calls, cuda/ what only a CUDA device uses
    compiled/       layers in machine code, on the CPU, in float32 and int8
"""
