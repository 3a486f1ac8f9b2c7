"""Whether the frontend is well, and the log of what happened."""

from __future__ import annotations

import logging
import sqlite3

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from polyhead.client.annotate.admin import health, log
from polyhead.client.annotate.admin.health import Facts
from polyhead.client.annotate.keeping.backup import keep_backup
from polyhead.client.annotate.keeping.versions import versions
from polyhead.client.annotate.people.accounts import Person
from polyhead.client.annotate.problems import Clash
from polyhead.client.annotate.storage.database import DatabaseError
from polyhead.client.annotate.web.access import Site, route
from polyhead.client.annotate.web.admin.page import ADMINS, csv_file, number_in, page, read_beside

_log = logging.getLogger(__name__)


async def health_page(request: Request, site: Site, person: Person) -> Response:
    keeper = site.keeper
    unscored = tuple(site.scorer.refused.values())
    facts = Facts(site.model.is_up, site.served, site.trunk, site.backup_dir, keeper.has_token, keeper.refusal, unscored)
    concerns, tables = await read_beside(site.db, lambda reader: health.health(reader, facts))
    if wanted := request.query_params.get("csv"):
        return csv_file(request, person, "health", tables, wanted)
    return page(
        request, site, person, "health", concerns=concerns, tables=tables, versions=versions(site.db), has_trainer=keeper.has_token,
        has_backups=site.backup_dir is not None,
    )  # fmt: skip


async def back_up(request: Request, site: Site, person: Person) -> Response:
    """A backup beside the hourly ones, now."""
    folder = site.backup_dir
    if folder is None:
        raise Clash("the pages were started without --backup-dir", code="NO_BACKUPS")
    try:
        made = await read_beside(site.db, lambda reader: keep_backup(reader, folder))
    except (OSError, sqlite3.Error, DatabaseError) as error:
        _log.error("no backup in %s: %s", folder, error)
        raise Clash(str(error), code="BACKUP_FAILED") from None
    with site.db.transaction():
        site.db.event("backups.made", person.id, {"name": made.path.name}, {})
    return RedirectResponse("/admin/health", 303)


async def let_go(request: Request, site: Site, person: Person) -> Response:
    """A version loses its label: the model server may remove it."""
    form = await request.form()
    await site.keeper.let_go(str(form.get("ref", "")), str(form.get("digest", "")), person.id)
    return RedirectResponse("/admin/health", 303)


async def log_page(request: Request, site: Site, person: Person) -> Response:
    """The log of events, the newest first."""
    query = request.query_params
    sought = log.Sought(query.get("kind", ""), query.get("actor", ""), query.get("about", ""), number_in(request, "before"))
    entries, following = await read_beside(site.db, lambda reader: log.entries(reader, sought))
    return page(request, site, person, "log", entries=entries, following=following, sought=sought, kinds=log.kinds(site.db))


ROUTES: list[Route] = [
    route("/admin/health", health_page, ADMINS),
    route("/admin/backup", back_up, ADMINS, ("POST",), is_form=True),
    route("/admin/versions", let_go, ADMINS, ("POST",), is_form=True),
    route("/admin/log", log_page, ADMINS),
]
