"""What only a CUDA device uses.

    varlen.py         attention in one call a layer, and which kernels may compute it
    paged.py          our own kernel's launches
    paged_kernels.py  our own kernel, in Triton
    varlen_probe.py   tries it on a small cache before it serves
    graphs.py         recorded decode steps
    recorder.py       how they are recorded
    tables.py         their tables of blocks, which stay on the device
    staging.py        their numbers on the way to the device, and tokens on the way back
    eight_bit.py      weights in int8 or fp8, by torch's own products
    fused.py          small work between products, one launch each
    fused_kernels.py  that work, in Triton
    fused_probe.py    tries it on small rows before it serves
    plain_rows.py     the same in torch's calls
    sampler.py        draws of all rows at once, read back in one copy
    upload.py         any other step's numbers on their way to the device
    threads.py        which device and stream a thread uses
    timing.py         how long the device takes
"""
