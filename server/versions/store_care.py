"""Looks after the store while it is served from: is the folder still ours, do its files hold what was stored? Changes nothing in it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from polyhead.heads.format.errors import PolyheadError
from polyhead.heads.store.damage import StoreDamage
from polyhead.heads.store.store import HeadStore
from polyhead.server.process.workers import Workers

LOOK_S = 5.0  # between two looks at the folder
SCRUB_BYTES_PER_S = 4 << 20  # a third of a percent of one core, and 28 GB in two hours
FIRST_SCRUB_S = 600.0  # after the start, which has read the active set just now
SCRUB_EVERY_S = 24 * 3600.0  # from the end of one pass to the begin of the next

log = logging.getLogger(__name__)


class StoreCare:
    """Two tasks of the event loop; the disk is touched on worker threads."""

    def __init__(self, store: HeadStore, workers: Workers, on_look: Callable[[], None]) -> None:
        self._store = store
        self._workers = workers
        self._on_look = on_look  # on the event loop, after each look
        self._told: set[StoreDamage] = {*store.other_damage}

    async def watch(self) -> None:
        """Look at the folder again and again; what is new goes to the log."""
        while True:
            await asyncio.sleep(LOOK_S)
            await self.look()

    async def look(self) -> None:
        """Once."""
        await self._workers.run(self._store.look)
        found = {*self._store.other_damage, *([self._store.lost] if self._store.lost else [])}
        for damage in found - self._told:
            log.error("the store is damaged: %s; repair: %s", damage.what, damage.repair)
        if self._told - found:
            log.info("%d damaged places of the store have been repaired", len(self._told - found))
        self._told = found
        self._on_look()

    async def scrub(self) -> None:
        """Read every stored head again, slowly: one pass a day."""
        await asyncio.sleep(FIRST_SCRUB_S)
        while True:
            started_at, num_bytes = time.monotonic(), 0
            while (count := await self._step()) > 0:
                num_bytes += count
                await asyncio.sleep(count / SCRUB_BYTES_PER_S)
            log.info("stored heads were read again: %d bytes in %.0f s", num_bytes, time.monotonic() - started_at)
            await asyncio.sleep(SCRUB_EVERY_S)

    async def _step(self) -> int:
        try:
            return await self._workers.run(self._store.scrub.step)
        except PolyheadError as error:  # the folder is gone: `watch` says so
            log.warning("stored heads could not be read again: %s", error.message)
            return 0
