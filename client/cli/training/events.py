"""Numbers of a training run as TensorBoard's event files, where the tensorboard package is installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from polyhead.client.cli.session import fail

__all__ = ["event_writer"]

Write = Callable[[Mapping[str, float], int], None]  # (numbers by name, step)


@contextlib.contextmanager
def event_writer(folder: Path | None) -> Iterator[Write]:
    """A function that writes a step's numbers; without a folder it does nothing. Ends the command if tensorboard is missing."""
    if folder is None:
        yield lambda numbers, step: None
        return
    if find_spec("tensorboard") is None:
        fail("--tensorboard needs the tensorboard package\nhint: pip install tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:

        def write(numbers: Mapping[str, float], step: int) -> None:
            for name, number in numbers.items():
                writer.add_scalar(name, number, step)

        yield write
