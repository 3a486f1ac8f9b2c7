"""Takes the caches' memory from the kernel before anything is written there.

A page that is first touched while a layer runs stops both threads of it: on a virtual machine for 2.5 us, and 32 streams touch 360 new
pages at every step until a cache is full. In large pieces, beside the engine, the same pages cost 2 us each and no step waits for them.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Sequence

from torch import Tensor

PIECE_BYTES = 1 << 20  # half a millisecond
_POPULATE_WRITE = 23  # of Linux 5.14's mman.h: as if a byte of each page were written, and changes none


def commit(tensors: Sequence[Tensor], goes_on: Callable[[], bool]) -> bool:
    """Take the memory of tensors on the CPU, from their beginning a piece of each in turn, as slots are handed out.

    They may be read and written meanwhile. Asks `goes_on` before each piece. Returns whether all is taken: an older kernel, or a full
    memory, leaves the rest to be taken when it is touched.
    """
    num_pieces = max((-(-tensor.nbytes // PIECE_BYTES) for tensor in tensors), default=0)
    for piece in range(num_pieces):
        for tensor in tensors:
            start, end = (tensor.data_ptr() + tensor.nbytes * number // num_pieces for number in (piece, piece + 1))
            if not goes_on() or not _take(start, end):
                return False
    return True


def _take(start: int, end: int) -> bool:
    """The pages of the bytes at addresses [start, end)."""
    start -= start % mmap.PAGESIZE
    return _madvise(start, end - start, _POPULATE_WRITE) == 0


def _find_madvise() -> Callable[[int, int, int], int]:
    try:
        madvise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # not a system that has it
        return lambda start, size, advice: -1
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return madvise


_madvise = _find_madvise()
