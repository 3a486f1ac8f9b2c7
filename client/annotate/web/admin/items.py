"""Items: the list, one of them, what can be changed in it, and files of new ones."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from polyhead.client.annotate.admin import items, rounds
from polyhead.client.annotate.admin.items import Sought
from polyhead.client.annotate.items.imports import MAX_BYTES, WrongLines, read_items
from polyhead.client.annotate.items.storing import PAUSE_S, Imported, Item, plan_import, store, storing
from polyhead.client.annotate.people.accounts import Person
from polyhead.client.annotate.problems import Clash, Invalid
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.projects.rules import known_rules
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.access import Site, route
from polyhead.client.annotate.web.admin.page import ADMINS, PROJECT, number_in, page, read_beside

_FORM_BYTES = 64 << 10  # around the file
ITEM = f"{PROJECT}/items/{{item_id}}"


async def items_page(request: Request, site: Site, person: Person) -> Response:
    """Items by round, state, source and text, the newest first."""
    return await _list(request, site, person)


async def import_file(request: Request, site: Site, person: Person) -> Response:
    """A file of items: checked as a whole, and stored only if every line is an item. Lines that are none are named."""
    project = projects.open_project(site.db, request.path_params["slug"])
    form = await request.form()
    upload, is_dry = form.get("file"), form.get("dry_run") == "1"
    if not isinstance(upload, UploadFile) or not upload.filename:
        return await _list(request, site, person, 422, wrong_lines=["no file was chosen"])
    data = await upload.read()
    try:
        found = await asyncio.to_thread(read_items, project, known_rules(site.db, project)[1], data)
        done = await _stored(site.db, project, upload.filename, data, found, person.id, is_dry=is_dry)
    except WrongLines as error:
        return await _list(request, site, person, 422, wrong_lines=error.lines, num_more=error.num_more, file_name=upload.filename)
    except (Invalid, Clash) as error:
        return await _list(request, site, person, error.status, wrong_lines=[error.detail], file_name=upload.filename)
    return await _list(request, site, person, done=done, is_dry=is_dry, file_name=upload.filename)


async def item_page(request: Request, site: Site, person: Person) -> Response:
    return _one(request, site, person)


async def change_item(request: Request, site: Site, person: Person) -> Response:
    """Retire it or hand it out again, its priority and overlap, its known answer."""
    form = await request.form()
    project = projects.find_project(site.db, request.path_params["slug"])
    item = items.find_item(site.db, project.id, request.path_params["item_id"])
    acts: dict[str, Callable[[], None]] = {
        "state": lambda: items.set_state(site.db, item, str(form.get("state", "")), person.id),
        "numbers": lambda: items.set_numbers(site.db, item, dict(form), person.id),
        "gold": lambda: items.set_gold(site.db, item, str(form.get("gold_kind", "")), str(form.get("gold", "")), person.id),
    }
    act = acts.get(str(form.get("act", "")))
    if act is None:
        raise Invalid("unknown act", field="act")
    try:
        act()
    except Invalid as error:
        return _one(request, site, person, 422, wrong=error.detail, typed=str(form.get("gold", "")))
    return RedirectResponse(f"/admin/p/{project.slug}/items/{item.id}", 303)


async def _stored(db: Database, project: OpenProject, name: str, data: bytes, found: list[Item], by: str, *, is_dry: bool) -> Imported:
    """Portion by portion, other requests in between: the loop is everybody's."""
    with storing(db):
        plan = await read_beside(db, lambda reader: plan_import(reader, project, name, data, found))
        if not is_dry:
            with contextlib.closing(store(db, plan, by)) as portions:
                for _ in portions:
                    await let_others_in()
    return plan.result


async def let_others_in() -> None:
    """Time for other requests."""
    await asyncio.sleep(PAUSE_S)


async def _list(request: Request, site: Site, person: Person, status: int = 200, **more: Any) -> Response:
    project = projects.find_project(site.db, request.path_params["slug"])
    state, source, text = (request.query_params.get(name, "")[:200] for name in ("state", "source", "text"))
    sought = Sought(number_in(request, "round"), state, source, text, number_in(request, "before"))
    lines, following = await read_beside(site.db, lambda reader: items.items(reader, project.id, sought))
    shown: dict[str, Any] = {"wrong_lines": [], "num_more": 0, "file_name": "", "done": None, "is_dry": False, **more}
    return page(
        request, site, person, "items", status, project=project, sought=sought, lines=lines, following=following,
        states=items.STATES, sources=items.SOURCES, rounds=rounds.rounds_of(site.db, project.id),
        imports=rounds.imports_of(site.db, project.id), **shown,
    )  # fmt: skip


def _one(request: Request, site: Site, person: Person, status: int = 200, *, wrong: str = "", typed: str = "") -> Response:
    project = projects.find_project(site.db, request.path_params["slug"])
    item = items.find_item(site.db, project.id, request.path_params["item_id"])
    return page(
        request, site, person, "item", status, project=project, look=items.look(site.db, item), wrong=wrong, typed=typed,
        gold_kinds=items.GOLD_KINDS,
    )  # fmt: skip


ROUTES: list[Route] = [
    route(f"{PROJECT}/items", items_page, ADMINS),
    route(f"{PROJECT}/items", import_file, ADMINS, ("POST",), is_form=True, max_body=MAX_BYTES + _FORM_BYTES),
    route(ITEM, item_page, ADMINS),
    route(ITEM, change_item, ADMINS, ("POST",), is_form=True),
]
