"""Tensor parallel: one server of several processes, each with a share of every layer. Nothing of it is imported by a server of one.

Rank 0 is the server: wire, queue, scheduler, sampler, store. It says each pass to the other ranks before it begins its own part of it; they
know tokens, slots and numbers of heads, but no requests, versions or generations. Two sums a layer join the ranks' parts.

    refusals.py    settings that do not go with several ranks
    shares.py      which part of a model a rank has, read from its files
    layers.py      layers of a share, with the sums
    group.py       the sums, by torch.distributed
    passes.py      a pass as numbers
    runners.py     passes carried out, on rank 0 and on the others
    lead.py        rank 0's engine, which says each pass
    loader.py      heads handed to all ranks
    wire.py        what processes of one server say to each other
    children.py    the other ranks' processes
    ranks.py       rank 0's view of them: messages, signs of life, the end
    start.py       rank 0's start
    rank.py        another rank, from start to end
"""
