"""Layers as one call into machine code: written in Python, compiled by Numba when a server first starts on a machine, and kept on disk.

    machine.py     what LLVM is asked for by name: tiles of products, numbers at an address, threads
    lanes.py       a vector as a type of its own, and exp
    jobs.py        the records through which Python tells the compiled code what to do
    rows.py        row by row: norm, spreading, quantisation, rotation
    products.py    rows times packed weights
    amx.py         the same in int8 on processors that multiply matrices
    attention.py   queries over the blocks of a cache
    logits.py      what rows of logits say of tokens, and which one a number draws
    entry.py       the one function that is called: a whole stack of layers, or one part of it
    packing.py     a weight to panels
    matrices.py    holds packed weights
    region.py      calls it, on torch's own threads
    calls.py       one part at a time
    stack.py       the layers of a trunk or a head, called as fast.py calls them
    sampler.py     rows of logits, called as the engine calls any sampler

Every sum runs over one row alone and always in the same order. So a token's numbers are the same bit for bit beside any neighbours, in any
chunk, after a cache hit or without one.
"""
