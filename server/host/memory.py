"""Keeps the process near the size of its weights: settings of malloc, and when freed pages are returned. Knows nothing of heads.

Left alone, glibc opens an arena for each thread, and each keeps what its largest moment took: 60 pushes of an 81 MiB head leave 80 MiB of
free pages behind. Whether a step's logits (6 MiB at 32 rows) are pages kept or pages mapped and cleared anew at every step depends on
what was freed before; here they are always kept.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from typing import Any

MAX_ARENAS = 2  # the engine's thread and one for all others
MAPPED_BYTES = 32 << 20  # a piece of at least this size is a mapping of its own, returned when it is freed: glibc's largest
KEPT_BYTES = 128 << 20  # free pages at an arena's end beyond this are returned at once
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def bound_malloc() -> None:
    """Call before other threads start; without glibc nothing happens. MALLOC_ARENA_MAX and the like in the environment are overruled."""
    if mallopt := _glibc("mallopt"):
        mallopt(_M_ARENA_MAX, MAX_ARENAS)
        mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def return_freed_pages() -> None:
    """After work that took much memory for a moment: milliseconds, on the caller's thread."""
    if malloc_trim := _glibc("malloc_trim"):
        malloc_trim(0)


def return_garbage() -> None:
    """Once, at the end of loading: what is left in cycles, too. Stops all threads for a tenth of a second.

    Hundreds of thousands of objects of torch, transformers and Numba stay for good, and Python's collector is told to leave them alone.
    It would go through all of them now and then, most likely while a head is built, and stop all threads for a quarter of a second.
    """
    gc.collect()
    gc.freeze()
    return_freed_pages()


def _glibc(name: str) -> Callable[..., Any] | None:
    with contextlib.suppress(AttributeError):
        return ctypes.CDLL(None)[name]
    return None
