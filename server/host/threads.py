"""How many threads torch uses on the calling thread, and compiled layers with it."""

from __future__ import annotations

import torch


def use_torch_threads(num_threads: int) -> None:
    """For the calling Python thread, whatever others set before or after.

    A thread's first look at the number takes over the one that any thread set last, and undoes its own: an engine that had set two ran
    on one from the first push on, because a worker had set its own in between. So the first look comes first.
    """
    torch.get_num_threads()
    torch.set_num_threads(num_threads)
