"""Checks the store while the server runs: is the folder still the one that was opened, do files match their hashes? Changes nothing."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from polyhead.heads.format.errors import PolyheadError
from polyhead.heads.store.damage import StoreDamage
from polyhead.heads.store.store import HeadStore
from polyhead.server.process.workers import Workers

CHECK_S = 5.0  # between two checks of the folder
SCRUB_BYTES_PER_S = 4 << 20  # a third of a percent of one core, and 28 GB in two hours
FIRST_SCRUB_S = 600.0  # after the start, which has read the active set just now
SCRUB_EVERY_S = 24 * 3600.0  # from the end of one pass to the begin of the next

log = logging.getLogger(__name__)


class StoreMonitor:
    """Two tasks of the event loop; the disk is touched on worker threads."""

    def __init__(self, store: HeadStore, workers: Workers, on_check: Callable[[], None]) -> None:
        self._store = store
        self._workers = workers
        self._on_check = on_check  # on the event loop, after each check
        self._reported: set[StoreDamage] = {*store.other_damage}

    async def watch(self) -> None:
        """Check the folder until cancelled; damage that is new is logged."""
        while True:
            await asyncio.sleep(CHECK_S)
            await self.check()

    async def check(self) -> None:
        """One check of the folder."""
        await self._workers.run(self._store.check_folder)
        found = {*self._store.other_damage, *([self._store.restart_damage] if self._store.restart_damage else [])}
        for damage in found - self._reported:
            log.error("the store is damaged: %s; repair: %s", damage.what, damage.repair)
        if self._reported - found:
            log.info("%d damaged places of the store have been repaired", len(self._reported - found))
        self._reported = found
        self._on_check()

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
