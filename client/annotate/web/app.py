"""The web application, put together. One process and one event loop: its state is the database and what is being drawn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from polyhead.client import AsyncClient
from polyhead.client.annotate.items import storing
from polyhead.client.annotate.keeping.backup import keep_backup
from polyhead.client.annotate.keeping.versions import Keeper
from polyhead.client.annotate.replies.drawing import Model
from polyhead.client.annotate.replies.scoring import Scorer
from polyhead.client.annotate.replies.turns import Turns
from polyhead.client.annotate.storage.database import Database, DatabaseError
from polyhead.client.annotate.web import admin, api, pages
from polyhead.client.annotate.web.access import Site
from polyhead.client.annotate.web.metrics import watch
from polyhead.client.annotate.web.noticing import notice
from polyhead.client.annotate.web.security import Secure

BACKUP_S = 3600.0
log = logging.getLogger(__name__)


def make_app(
    db: Database,
    client: AsyncClient,
    *,
    is_https: bool = False,
    is_behind_proxy: bool = False,
    backup_dir: Path | None = None,
    registry: CollectorRegistry | None = None,
    trainer: AsyncClient | None = None,
) -> ASGIApp:
    """The application over an open database and a client of the model server. `backup_dir`: a backup an hour goes there.
    `registry`: gets the metrics. `trainer`: a client with a trainer's token, which labels the head versions that replies came from."""
    model = Model(client)
    site = Site(db, model, Turns(db, model), Scorer(db, model), Keeper(db, trainer), is_https, is_behind_proxy, backup_dir=backup_dir)
    static = Mount("/static", StaticFiles(directory=Path(str(files("polyhead.client.annotate.web"))) / "static"), name="static")
    routes: list[BaseRoute] = [*pages.ROUTES, *api.ROUTES, *admin.ROUTES, static, *pages.LAST]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        storing.tidy(db)
        site.turns.resume()
        watching = model.keep_watching(lambda status: notice(site, status))
        beside = [asyncio.create_task(watching), asyncio.create_task(site.scorer.run())]
        if backup_dir is not None:
            beside.append(asyncio.create_task(_keep_backups(db, backup_dir)))
        try:
            yield
        finally:
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            await site.turns.close()

    app = Starlette(routes=routes, lifespan=lifespan)
    app.state.site = site
    counted = watch(registry, db, lambda: model.is_up, backup_dir).around(app) if registry is not None else app
    return Secure(counted, is_https=is_https)


async def _keep_backups(db: Database, folder: Path) -> None:
    """One at the start, then one an hour, in a thread on a connection of its own. A full disk is logged, and tried again an hour later."""

    def copy() -> None:
        reader = db.reader()
        try:
            keep_backup(reader, folder)
        finally:
            reader.close()

    while True:
        try:
            await asyncio.to_thread(copy)
        except (OSError, DatabaseError, sqlite3.Error) as error:
            log.error("no backup in %s: %s", folder, error)
        await asyncio.sleep(BACKUP_S)
