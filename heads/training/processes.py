"""One training run in several processes, as torchrun or `accelerate launch` starts them; a run that nobody launched so is one process.

Each process takes its share of a step's items, and gradients are summed over all of them. Whatever must be done once (checkpoints, pushes,
prompts that a head writes) the main one does, and tells the others. Knows no loss and no data.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=1)  # of one process for the others: a process that ends ends the wait at once


class OtherProcessFailed(RuntimeError):
    """Another process of the run cannot go on, so this one cannot either. The other one says why."""


class ProcessLost(OtherProcessFailed):
    """Another process of the run has ended, and did not say why."""


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1

    @classmethod
    def launched(cls) -> Processes:
        """As the launcher's environment says; connects to the others the first time. Raises ValueError for half an environment."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls()
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            hint = "hint: start the processes with torchrun, or unset WORLD_SIZE"
            raise ValueError(f"WORLD_SIZE is {count}, but {missing[0]} is not set\n{hint}")
        with _talking():
            _group()
        return cls(distributed.get_rank(), distributed.get_world_size())

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
        with _talking():
            for parameter in parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                distributed.all_reduce(parameter.grad, group=_group())

    def sums(self, numbers: Sequence[float]) -> list[float]:
        """Each number summed over all processes."""
        return self._reduced(numbers, distributed.ReduceOp.SUM)

    def largest(self, numbers: Sequence[float]) -> list[float]:
        """Each number's largest over all processes."""
        return self._reduced(numbers, distributed.ReduceOp.MAX)

    def scatter(self, values: Sequence[T]) -> T:
        """This process's of the main one's values, one for each rank; what the others give is not looked at."""
        if self.count == 1:
            return values[0]
        own: list[Any] = [None]
        with _talking():
            distributed.scatter_object_list(own, list(values) if self.is_main else None, src=0, group=_group())
        return own[0]  # type: ignore[no-any-return]

    def together(self, act: Callable[[], T]) -> T:
        """What `act` returns here. If it fails in one process it fails in all: there with its own error, here with OtherProcessFailed."""
        if self.count == 1:
            return act()
        error: Exception | None = None
        try:
            done = act()
        except Exception as raised:
            error = raised
        num_failed = self.sums([float(error is not None)])[0]
        if error is not None:
            raise error
        if num_failed:
            raise OtherProcessFailed("another process of the run failed")
        return done

    def on_main(self, act: Callable[[], T]) -> T:
        """Done by the main process alone; its answer for all. Its error is OtherProcessFailed in the others."""
        if self.count == 1:
            return act()
        answer: list[Any] = [None]

        def answered() -> None:
            answer[0] = act()

        self.together(answered if self.is_main else lambda: None)
        with _talking():
            distributed.broadcast_object_list(answer, src=0, group=_group())
        return answer[0]  # type: ignore[no-any-return]

    def tensors_of_main(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The main process's tensors, for all; what the others give is not looked at."""
        if self.count == 1:
            return dict(tensors)
        described = self.on_main(lambda: [(name, each.shape, each.dtype) for name, each in tensors.items()])
        found = {}
        with _talking():
            for name, shape, dtype in described:
                found[name] = tensors[name].detach().clone().contiguous() if self.is_main else torch.empty(shape, dtype=dtype)
                distributed.broadcast(found[name], src=0, group=_group())
        return found

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            with _talking():
                distributed.barrier(group=_group())

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does the block before the others: they find what it has left on the disk."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def _reduced(self, numbers: Sequence[float], how: Any) -> list[float]:
        if self.count == 1:
            return list(numbers)
        row = torch.tensor(list(numbers), dtype=torch.float64)
        with _talking():
            distributed.all_reduce(row, op=how, group=_group())
        return row.tolist()


ALONE = Processes()


@functools.cache
def _group() -> Any:
    """Of all processes, over gloo: heads are trained on the CPU, also where a script has made a group for its GPUs."""
    if not distributed.is_initialized():
        distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
        return distributed.group.WORLD
    if distributed.get_backend() == "gloo":
        return distributed.group.WORLD
    return distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """A process that has ended closes its connections: what torch raises then says nothing to a person."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(f"another process of the run has ended: {str(error).splitlines()[0][:200]}") from error
