"""What the processes of one server say to each other, over two sockets for each rank.

Passes: messages of int64, a count before each. Control: JSON lines both ways; behind a line that announces weights come their bytes.
"""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from polyhead.heads.model.checkpoint import as_bytes

NUMBER = "q"
NUMBER_BYTES = 8
DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16, torch.float16)}


class Gone(ConnectionError):
    """The other process has closed its end."""


def packed(numbers: Sequence[int]) -> bytes:
    """A message of the passes' socket."""
    return array.array(NUMBER, [len(numbers), *numbers]).tobytes()


def read_numbers(stream: BinaryIO) -> list[int]:
    """The next message. Gone at the end."""
    (count,) = _array(stream, 1)
    return _array(stream, count).tolist()


def _array(stream: BinaryIO, count: int) -> array.array[int]:
    data = bytearray(count * NUMBER_BYTES)
    fill(stream, memoryview(data))
    numbers = array.array(NUMBER)
    numbers.frombytes(data)
    return numbers


def fill(stream: BinaryIO, buffer: memoryview) -> None:
    """Read until the buffer is full. Gone if the stream ends before."""
    done = 0
    while done < len(buffer):
        count = stream.readinto(buffer[done:])  # type: ignore[attr-defined]  # a socket's file has it
        if not count:
            raise Gone("the other process has closed its end")
        done += count


def line(message: Mapping[str, Any]) -> bytes:
    """A control message."""
    return json.dumps(message).encode() + b"\n"


def read_line(stream: BinaryIO) -> dict[str, Any]:
    """The next control message. Gone at the end."""
    text = stream.readline()
    if not text.endswith(b"\n"):
        raise Gone("the other process has closed its end")
    return cast(dict[str, Any], json.loads(text))


@dataclass(frozen=True, slots=True)
class Announced:
    """A tensor whose bytes come next."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Announced:
        return cls(name, tensor.dtype, tuple(tensor.shape))

    @classmethod
    def from_plain(cls, plain: Sequence[Any]) -> Announced:
        name, dtype, shape = plain
        return cls(str(name), DTYPES[dtype], tuple(shape))

    @property
    def plain(self) -> tuple[str, str, tuple[int, ...]]:
        return self.name, str(self.dtype), self.shape

    def read(self, stream: BinaryIO) -> Tensor:
        tensor = torch.empty(self.shape, dtype=self.dtype)
        if tensor.numel():
            fill(stream, as_bytes(tensor))
        return tensor


def send_tensor(to: socket.socket, tensor: Tensor) -> None:
    """Its bytes; a part that does not lie together is copied first."""
    whole = tensor.detach().contiguous()
    if whole.numel():
        to.sendall(as_bytes(whole))
