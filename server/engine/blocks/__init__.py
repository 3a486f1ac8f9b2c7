"""What is kept between steps.

    tree.py         the tree of blocks: which slot holds which tokens
    head_pool.py    slots for heads' own keys and values
    cache.py        the tensors behind both
"""
