"""Threads for what would hold up the event loop: hashing, disks, building heads, texts. One torch thread each, beside the engine's.

Four pools, so that nothing waits behind work of another kind: `run` for requests and heads, `run_control` for what an operator asks
and changes, a third for messages so large that their texts take seconds (`run_sized`), and a fourth for changes that wait for replicas
(`run_waiting`), whose own work needs the first two.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ParamSpec, TypeVar

from polyhead.heads.format.errors import PolyheadError
from polyhead.heads.format.pauses import Pause, pausing

P = ParamSpec("P")
R = TypeVar("R")
OpenT = TypeVar("OpenT", bound=AbstractContextManager[Any])
NUM_THREADS = 8  # more than the pushes that may run at once
NUM_CONTROL_THREADS = 4  # none of their calls reads weights or texts
NUM_LONG_THREADS = 2
NUM_WAITING_THREADS = 8  # changes that load ahead while one waits for the replicas
LONG_BYTES = 256 << 10  # of a message: tokenising so much text takes a second, and a hundred times its memory

log = logging.getLogger(__name__)


class Workers:
    """The pools."""

    def __init__(self) -> None:
        self.pause: Pause | None = None  # what long work does between two pieces (heads/format/pauses.py); set once there is an engine
        self._pool = _pool("polyhead-worker", NUM_THREADS)
        self._control = _pool("polyhead-control", NUM_CONTROL_THREADS)
        self._long = _pool("polyhead-long", NUM_LONG_THREADS)
        self._waiting = _pool("polyhead-waiting", NUM_WAITING_THREADS)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function with the caller's context (request id for the log). A cancel does not stop it."""
        return await self._run(self._pool, partial(function, *args, **kwargs))

    async def run_control(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same for status, listings, deletions and changes of the active set: short work, whatever requests and pushes do."""
        return await self._run(self._control, partial(function, *args, **kwargs))

    async def run_sized(self, num_bytes: int, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same for work on a message of `num_bytes`: long ones have threads of their own, so that short ones need not wait for them."""
        return await self._run(self._long if num_bytes > LONG_BYTES else self._pool, partial(function, *args, **kwargs))

    async def run_waiting(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The same for a change that waits for replicas: what they ask for meanwhile runs on the other threads."""
        return await self._run(self._waiting, partial(function, *args, **kwargs))

    async def finish(self, function: Callable[..., R], *args: object) -> R:
        """As `run`, and wait until it has ended, even if the caller is cancelled: its data belongs to one thread at a time."""
        return await carried_through(self.run(function, *args))

    async def open(self, function: Callable[..., OpenT], *args: object) -> OpenT:
        """The same for a resource, which is closed here if the caller is cancelled before it gets it."""
        task = asyncio.ensure_future(self.run(function, *args))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await _ended(task)
            if task.exception() is None:
                with task.result():
                    raise
            raise

    def close(self) -> None:
        """Wait for running calls; further ones are refused."""
        for pool in (self._pool, self._control, self._long, self._waiting):
            pool.shutdown(wait=True, cancel_futures=True)

    async def _run(self, pool: ThreadPoolExecutor, call: Callable[[], R]) -> R:
        context = contextvars.copy_context()
        bound: Callable[[], Any] = partial(context.run, self._paced, call)
        result: R = await asyncio.get_running_loop().run_in_executor(pool, bound)
        return result

    def _paced(self, call: Callable[[], R]) -> R:
        with pausing(self.pause):
            return call()


async def carried_through(work: Awaitable[R]) -> R:
    """Wait until it has ended, even if the caller is cancelled."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _ended(task)
        if (error := task.exception()) is not None:  # asked for here: asyncio would write a traceback to the log for each refusal
            is_refused = isinstance(error, PolyheadError)
            level, trace = (logging.INFO, None) if is_refused else (logging.ERROR, error)
            log.log(level, "a change failed after its caller had gone: %s", type(error).__name__, exc_info=trace)
        raise


async def _ended(task: asyncio.Future[Any]) -> None:
    """Wait for its end, however often this coroutine is cancelled."""
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task])


def _pool(name: str, num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix=name, initializer=_use_one_torch_thread)


def _use_one_torch_thread() -> None:
    from polyhead.server.host.threads import use_torch_threads

    use_torch_threads(1)
