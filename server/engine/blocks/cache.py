"""The tensors behind the blocks: keys and values per layer and slot, boundary states, taps. Knows slots and rows, not tokens or requests.

One slot holds one block. Slot 0 holds none: it stays zero and pads tables. Where attention multiplies masked values by 0, as torch's does,
a slot is cleared when it is taken: a NaN of an earlier block would stay a NaN. Memory is committed when it is first written, not when the
cache is made, or ahead of that by server/host/commit.py.
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

OVERREAD_BYTES = 64  # past the end: compiled layers read whole vectors


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Sizes that trunk and head caches of one model share."""

    num_kv_heads: int
    head_dim: int
    block_size: int
    dtype: torch.dtype
    device: torch.device
    kv_dtype: torch.dtype | None = None  # of keys and values as they are kept; None: `dtype`

    @property
    def kept_dtype(self) -> torch.dtype:
        """Of keys and values in the cache. Layers compute with them in `dtype`."""
        return self.kv_dtype or self.dtype

    def kv_bytes(self, num_layers: int) -> int:
        """Bytes of one block's keys and values."""
        return num_layers * self.block_size * 2 * self.num_kv_heads * self.head_dim * self.kept_dtype.itemsize


class KvCache:
    """Keys and values of `num_layers` layers for `num_slots` blocks."""

    def __init__(
        self, shape: CacheShape, num_layers: int, num_slots: int, *, is_compiled: bool = False, is_cleared: bool = True
    ) -> None:
        """`is_compiled`: for compiled layers, which order a block in their own way.

        `is_cleared`: each slot when it is taken, on a GPU a launch for all layers; not needed where no key is read that was not written.
        """
        self.shape = shape
        self._is_cleared = is_cleared and not is_compiled
        self.is_compiled = is_compiled
        self.num_slots = num_slots
        size = (num_slots, shape.block_size, 2, shape.num_kv_heads, shape.head_dim)
        self.layers = [_lazy_zeros(size, shape.kept_dtype, shape.device) for _ in range(num_layers)]
        self._rows = [layer.view(num_slots * shape.block_size, 2, shape.num_kv_heads, shape.head_dim) for layer in self.layers]
        self._slots = [layer.view(num_slots, -1) for layer in self.layers]
        self.addresses = np.array([layer.data_ptr() for layer in self.layers], dtype=np.int64)  # for compiled layers

    def write(self, layer: int, rows: Tensor, kv: Tensor) -> None:
        """Store keys and values, (tokens, 2, kv_heads, head_dim), at `rows` = slot * block_size + offset."""
        self._rows[layer].index_copy_(0, rows, kv)

    def rows(self, layer: int) -> Tensor:
        """(slots * block_size, 2, kv_heads, head_dim): what `write` writes to."""
        return self._rows[layer]

    def gather(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a (sequences, blocks) table of slots, each (sequences, kv_heads, blocks * block_size, head_dim)."""
        num_sequences, num_blocks = slots.shape
        blocks = self._slots[layer].index_select(0, slots.reshape(-1))
        shape = self.shape
        kv = blocks.view(num_sequences, num_blocks * shape.block_size, 2, shape.num_kv_heads, shape.head_dim)
        return kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)

    def clear(self, slot: int) -> None:
        """Forget what a slot held."""
        if not self._is_cleared:
            return
        slots = [layer[slot] for layer in self._slots]
        if self.shape.device.type == "cpu":
            for each in slots:
                each.zero_()
        else:
            torch._foreach_zero_(slots)

    def hold_numbers_only(self) -> None:
        """Attention that multiplies masked values by 0 takes over: what is no number becomes 0, and slots are cleared from now on."""
        if not self._is_cleared and not self.is_compiled:
            self._is_cleared = True
            for layer in self.layers:
                layer.nan_to_num_(0.0, 0.0, 0.0)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy at least the first `num_tokens` tokens of one slot to another: the whole block in the compiled layers' order."""
        if self.is_compiled:
            num_tokens = self.shape.block_size
        for layer in self.layers:
            layer[target, :num_tokens] = layer[source, :num_tokens]


class TrunkCache:
    """What is cached for each token of the trunk: keys, values, the boundary state, and with a tap the state at one layer inside."""

    def __init__(
        self,
        shape: CacheShape,
        num_layers: int,
        d_model: int,
        num_slots: int,
        *,
        has_taps: bool = False,
        is_compiled: bool = False,
        is_cleared: bool = True,
        states_device: torch.device | None = None,
    ) -> None:
        """`states_device`: of the heads, which read the states; None: the trunk's."""
        self.kv = KvCache(shape, num_layers, num_slots, is_compiled=is_compiled, is_cleared=is_cleared)
        self.states_device = states_device or shape.device
        self.states = _lazy_zeros((num_slots * shape.block_size, d_model), shape.dtype, self.states_device)
        self.taps = _lazy_zeros((num_slots * shape.block_size, d_model), shape.dtype, shape.device) if has_taps else None

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds, by slots."""
        return [*self.kv.layers, self.states, *([] if self.taps is None else [self.taps])]

    def clear(self, slot: int) -> None:
        """Forget what a slot held; its states and taps are always written before they are read."""
        self.kv.clear(slot)

    def copy(self, source: int, target: int, num_tokens: int) -> None:
        """Copy the first tokens of one slot to another, states and taps included."""
        self.kv.copy(source, target, num_tokens)
        size = self.kv.shape.block_size
        for rows in (self.states, self.taps):
            if rows is not None:
                rows[target * size : target * size + num_tokens] = rows[source * size : source * size + num_tokens]


def _lazy_zeros(size: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros whose pages the kernel hands out when they are first touched.

    A mapping of their own: `torch.zeros` touches all pages, and so does calloc (`np.zeros`) when it finds room in what malloc has kept.
    """
    if device.type != "cpu":
        return torch.zeros(size, dtype=dtype, device=device)
    count = math.prod(size)
    num_bytes = count * dtype.itemsize + OVERREAD_BYTES
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(size)
