"""What only a CUDA device uses.

    varlen.py         attention in one call a layer, and which kernels may compute it
    paged.py          our own kernel's launches
    paged_kernels.py  our own kernel, in Triton
    varlen_probe.py   tries it on a small cache before it serves
    graphs.py         recorded decode steps
    eight_bit.py      weights in int8 or fp8, by torch's own products
    sampler.py        draws of all rows at once, read back in one copy
    upload.py         a step's numbers on their way to the device
"""
