"""How a trunk and heads run.

    trunk.py        the trunk over a step's new tokens
    heads.py        one head over its readings
    sampler.py      draws next tokens
    plan.py         a step as layers see it, and what an attention back end is
    attention.py    where transformers' own modules meet the plan and the caches
    layer_calls.py  what each layer asks of its attention function
    fast.py         our own layers for the llama-like families: a trunk, and heads on it
    llama.py        takes such a layer's weights out of transformers' modules
    kits.py         what fast.py asks of a way to hold and run weights; ../compiled/ is one, torch/stack.py the other
    linears.py      what our own layers ask of frozen weights that torch multiplies
    hadamard.py     spreads large numbers before rows become int8
"""
