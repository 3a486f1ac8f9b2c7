"""Calls the compiled function on torch's own threads, so that no second pool of them stands beside the first."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import llvmlite.binding as llvm
import numba
import numpy as np
import torch
from numba.core import event

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.model.embedded import cache_folder
from polyhead.server.engine.compiled import machine

WORTH_SAYING_S = 2.0
OTHER_COMPILES_S = 180.0  # no longer than this a process leaves the compiling to another one
COMPILING = "numba:run_pass"  # Numba's name of what it announces for each step of compiling a function

logger = logging.getLogger(__name__)

_ALIGNMENT = 64  # bytes of a cache line

Job = Any  # a numpy record of jobs.JOB


class Region:
    """A team of threads that all run one job."""

    def __init__(self, fork: Any, entry: Any) -> None:
        self._fork = fork
        self._function = entry  # whose machine code goes with it
        self._entry = entry.address

    def run(self, job: Job) -> None:
        """Returns when all threads have, or at once if there are no rows. Python goes on meanwhile in other threads."""
        if not job["num_rows"][0]:
            return
        self._fork(self._entry, job.ctypes.data, torch.get_num_threads(), 0)


@cache
def region() -> Region:
    """The one of this process. Compiles when first asked for, unless this machine's disk has it from an earlier time."""
    started_at = time.monotonic()
    library = _openmp()
    for name in ("GOMP_barrier", "omp_get_thread_num", "omp_get_num_threads"):
        llvm.add_symbol(name, ctypes.cast(getattr(library, name), ctypes.c_void_p).value)
    from polyhead.server.engine.compiled.entry import compiled_entry

    with announcing_compilation():
        try:
            folder = cache_folder() / "compiled"
            numba.config.CACHE_DIR = str(folder)  # not beside the sources, its own choice: there a server often may not write
            folder.mkdir(parents=True, exist_ok=True)
            with one_process(folder / "lock", OTHER_COMPILES_S):
                entry = compiled_entry(_fingerprint(), is_kept=True)  # type: ignore[no-untyped-call]
        except Exception as error:  # no folder, no room, no right, or a file that somebody damaged: whatever unpickling it says
            logger.warning("compiled layers are made anew at every start, the cache folder cannot be used: %s", error)
            entry = compiled_entry(_fingerprint(), is_kept=False)  # type: ignore[no-untyped-call]
    if (taken_s := time.monotonic() - started_at) > WORTH_SAYING_S:
        logger.info("compiled the layers for this machine in %.0f s", taken_s)
    if machine.HAS_TILES and not machine.HAS_AMX:
        logger.info("the kernel does not let us use this processor's AMX: products in int8 take longer")
    fork = library.GOMP_parallel
    fork.argtypes, fork.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    return Region(fork, entry)


@contextlib.contextmanager
def one_process(path: Path, limit_s: float) -> Iterator[None]:
    """Servers that start together on a new machine compile once: the others wait, and read what the first has written.

    After `limit_s` seconds the block is entered all the same: a stopped process must not keep another one from its start."""
    with path.open("w") as file:
        began_at = time.monotonic()
        is_told = False
        while not _is_ours(file) and (waited_s := time.monotonic() - began_at) < limit_s:
            if waited_s > WORTH_SAYING_S and not is_told:
                logger.info("another process compiles the layers for this machine: its result is read as soon as it is there")
                is_told = True
            time.sleep(0.05)
        yield


def _is_ours(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system without locks: each process compiles for itself
    return True


@contextlib.contextmanager
def announcing_compilation() -> Iterator[None]:
    """Says once that Numba compiles, when it begins to: a start that reads machine code from the disk says nothing."""

    class Announcer(event.Listener):  # type: ignore[misc]  # Numba has no types
        is_done = False

        def on_start(self, event: Any) -> None:
            if not self.is_done:
                self.is_done = True
                logger.info("compiling the layers for this machine: up to a minute, once; later starts read them from the disk")

        def on_end(self, event: Any) -> None:
            """Nothing: what it took is said when all is compiled."""

    with event.install_listener(COMPILING, Announcer()):
        yield


def _openmp() -> ctypes.CDLL:
    """The OpenMP library that torch runs on: its own copy, or the system's."""
    home = Path(torch.__file__).parent
    beside = sorted([*(home / "lib").glob("libgomp*.so*"), *home.with_name("torch.libs").glob("libgomp*.so*")])
    try:
        return ctypes.CDLL(str(beside[0]) if beside else "libgomp.so.1")
    except OSError as error:
        raise FailedPrecondition(f"our own layers need GNU OpenMP: {error}\nhint: --layers plain does without", field="layers") from None


def _fingerprint() -> int:
    """Of the sources and of what this processor can do: Numba looks at the file alone in which the function stands."""
    has = (machine.HAS_VNNI, machine.HAS_AVX512, machine.HAS_AVX2, machine.HAS_AMX, machine.HAS_HALVES)
    digest = hashlib.sha256(repr((machine.LANES, *has)).encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return int.from_bytes(digest.digest()[:4], "little") | 1


class Scratch(threading.local):
    """Memory for what a job computes on its way, one piece for each Python thread, as large as the largest job so far."""

    def __init__(self) -> None:
        self._held = torch.empty(0, dtype=torch.uint8)

    def addresses(self, sizes: list[int]) -> list[int]:
        """Room for so many bytes each. Good until this thread's next call."""
        padded = [-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes]
        needed = sum(padded) + _ALIGNMENT
        if len(self._held) < needed:
            self._held = torch.empty(needed, dtype=torch.uint8)
        first = -(-self._held.data_ptr() // _ALIGNMENT) * _ALIGNMENT
        return [first + int(offset) for offset in np.cumsum([0, *padded[:-1]])]


scratch = Scratch()
