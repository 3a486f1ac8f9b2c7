"""The interface of frozen weights that torch multiplies: torch/dense.py holds them as they are, cuda/eight_bit.py in int8 or fp8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

Quantization = Literal["none", "int8", "fp8"]  # how weights are held


class Linear(Protocol):
    """x @ weight.T + bias, (T, in) -> (T, out)."""

    @property
    def num_bytes(self) -> int:
        """Of the weights as they are held."""
        ...

    def __call__(self, x_TI: Tensor) -> Tensor: ...

    @property
    def adds_for_free(self) -> bool:
        """Whether `add_to` launches no more than the product."""
        ...

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        """other + product; `other` may be overwritten."""
        ...


class Gated(Protocol):
    """silu(x @ gate.T) * (x @ up.T), (T, in) -> (T, out)."""

    @property
    def num_bytes(self) -> int:
        """Of the weights as they are held."""
        ...

    def __call__(self, x_TI: Tensor) -> Tensor: ...

    def parts(self, x_TI: Tensor) -> tuple[Tensor, Tensor]:
        """Both products, before anything is done to them."""
        ...


@dataclass(frozen=True, slots=True)
class Linears:
    """One way to hold weights."""

    linear: Callable[[Tensor, Tensor | None], Linear]  # weight (out, in), bias (out)
    gated: Callable[[Tensor, Tensor | None, Tensor, Tensor | None], Gated]  # gate and up, each with its bias
    shared: Callable[[Tensor], Linear]  # of a weight that another part reads as well
    weight_bytes: Callable[[tuple[int, ...]], int]  # of one tensor of a head file, as it is held
