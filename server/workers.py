"""Threads for what would hold up the event loop: hashing, disks, building heads. One torch thread each, beside the engine's."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
NUM_THREADS = 8  # more than the pushes that may run at once, so that a rollback never waits for one


class Workers:
    """A pool."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="polyhead-worker", initializer=_use_one_torch_thread)

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function with the caller's context (request id for the log). A cancel does not stop it."""
        context = contextvars.copy_context()
        call: Callable[[], Any] = partial(context.run, partial(function, *args, **kwargs))
        result: R = await asyncio.get_running_loop().run_in_executor(self._pool, call)
        return result

    def close(self) -> None:
        """Wait for what runs; take no more."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def _use_one_torch_thread() -> None:
    from polyhead.server.engine.threads import use_torch_threads

    use_torch_threads(1)
