"""What all pages of the team share: who may see them, how they are drawn, tables as files, numbers computed beside the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from polyhead.client.annotate.admin.tables import Table, shown, to_csv
from polyhead.client.annotate.people.accounts import Person
from polyhead.client.annotate.problems import NotThere
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.access import Site, words_of

ADMINS, REVIEWERS = frozenset({"admin"}), frozenset({"admin", "adjudicator"})
REPORTS = ("progress", "agreement", "bias", "strength")
PROJECT = "/admin/p/{slug}"
T = TypeVar("T")


def page(request: Request, site: Site, person: Person, template: str, status: int = 200, **values: Any) -> Response:
    """One of templates/admin."""
    known: dict[str, Any] = {"yaml": "", "wrong": "", "reports_of": REPORTS, "cell": shown, **values}
    return site.page(request, f"admin/{template}.html", person, status, **known)


async def read_beside(db: Database, act: Callable[[Database], T]) -> T:
    """What `act` finds, in a thread on a connection of its own that only reads: people who work do not wait for it."""

    def read() -> T:
        reader = db.reader()
        try:
            return act(reader)
        finally:
            reader.close()

    return await asyncio.to_thread(read)


def csv_file(request: Request, person: Person, prefix: str, tables: Sequence[Table], name: str) -> Response:
    """One of the tables. NotThere for a name that none has."""
    table = next((each for each in tables if each.name == name), None)
    if table is None:
        raise NotThere("no such table", field="csv")
    headers = {"content-disposition": f'attachment; filename="{prefix}-{table.name}.csv"'}
    return Response(to_csv(table, words_of(request, person)), media_type="text/csv; charset=utf-8", headers=headers)


def number_in(request: Request, name: str) -> int:
    """A whole number of the address; 0 for anything else."""
    return whole(request.query_params.get(name, "0"))


def whole(text: object, digits: int = 15) -> int:
    """A whole number as somebody typed it; 0 for anything else."""
    given = str(text)
    return int(given) if given.isascii() and given.isdigit() and len(given) <= digits else 0
