"""What only a CUDA device uses.

    varlen.py         attention in one call a layer
    varlen_probe.py   tries it on a small cache before it serves
    graphs.py         recorded decode steps
    eight_bit.py      weights in int8 or fp8, by torch's own products
    upload.py         a step's numbers on their way to the device
"""
