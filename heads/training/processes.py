"""One training run in several processes, as `accelerate launch` or torchrun starts them; a run that nobody launched so is one process.

Each process takes its share of a step's items, and gradients are summed over all of them. Knows no loss and no data.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> Processes:
        """As the launcher's environment says; connects to the others through accelerate. Raises ValueError where it is missing."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        try:
            from accelerate import PartialState
        except ImportError:
            raise ValueError("several processes need the accelerate package\nhint: pip install accelerate") from None
        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes checkpoints and pushes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's items of a step."""
        return list(items[self.rank :: self.count])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make every gradient the sum over all processes; one that this process has no gradient for counts as 0."""
        if self.count == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            torch.distributed.all_reduce(parameter.grad)

    def sum(self, number: float) -> float:
        """A number summed over all processes."""
        if self.count == 1:
            return number
        total = torch.tensor(number, dtype=torch.float64)
        torch.distributed.all_reduce(total)
        return float(total)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            torch.distributed.barrier()
