"""Projects, their rounds, and reports on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from polyhead.client.annotate.admin import rounds
from polyhead.client.annotate.admin.agreement import agreement
from polyhead.client.annotate.admin.bias import bias
from polyhead.client.annotate.admin.charts import strength_chart
from polyhead.client.annotate.admin.progress import progress
from polyhead.client.annotate.admin.strengths import ranking
from polyhead.client.annotate.admin.tables import Table
from polyhead.client.annotate.people import pausing
from polyhead.client.annotate.people.accounts import Person
from polyhead.client.annotate.problems import NotThere
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.projects.yaml_reader import ConfigError
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.access import Site, route
from polyhead.client.annotate.web.admin.page import ADMINS, PROJECT, REPORTS, csv_file, number_in, page, read_beside


async def overview(request: Request, site: Site, person: Person) -> Response:
    """All projects, and whether the server still serves what their rounds began with."""
    active = site.served.active if site.served else None
    lines = rounds.overview(site.db, active, person.locale)
    num_paused = len(pausing.everybody_paused(site.db))
    return page(
        request, site, person, "overview", lines=lines, served=site.served, heads=rounds.heads_in_words(active), num_paused=num_paused
    )


async def add_project(request: Request, site: Site, person: Person) -> Response:
    """A project, or a new version of one, from YAML. What is wrong in it is said above the text, which is kept."""
    text = str((await request.form()).get("yaml", ""))
    try:
        stored = projects.store_project(site.db, read_project(text), person.id)
    except ConfigError as error:
        lines = rounds.overview(site.db, None, person.locale)
        return page(
            request, site, person, "overview", 422, lines=lines, served=site.served, heads="", num_paused=0, yaml=text, wrong=str(error)
        )
    return RedirectResponse(f"/admin/p/{stored.slug}", 303)


async def project_page(request: Request, site: Site, person: Person) -> Response:
    project = projects.find_project(site.db, request.path_params["slug"])
    versions = rounds.versions_of(site.db, project.id)
    newest = rounds.config_text(versions[0][0].json("config"))
    return page(
        request, site, person, "project", project=project, versions=versions, rounds=rounds.rounds_of(site.db, project.id), config=newest,
        served=site.served, in_words=rounds.heads_in_words,
    )  # fmt: skip


async def set_project_state(request: Request, site: Site, person: Person) -> Response:
    slug = request.path_params["slug"]
    rounds.set_state(site.db, slug, str((await request.form()).get("state", "")), person.id)
    return RedirectResponse(f"/admin/p/{slug}", 303)


async def begin_round(request: Request, site: Site, person: Person) -> Response:
    """The next round, on the newest version and on what is served now."""
    project = projects.find_project(site.db, request.path_params["slug"])
    name = str((await request.form()).get("name", ""))[:100]
    projects.open_round(site.db, project, person.id, name=name, status=site.served, trunk=site.trunk)
    return RedirectResponse(f"/admin/p/{project.slug}", 303)


async def report(request: Request, site: Site, person: Person) -> Response:
    """Progress, agreement, bias or strengths of a project, of one round or of all. `?csv=NAME`: one of its tables as a file."""
    slug, name = request.path_params["slug"], request.path_params["report"]
    if name not in REPORTS:
        raise NotThere("no such page")
    project, number = projects.find_project(site.db, slug), number_in(request, "round")
    tables, chart = await read_beside(site.db, lambda reader: _computed(reader, slug, name, number))
    if wanted := request.query_params.get("csv"):
        return csv_file(request, person, slug, tables, wanted)
    return page(
        request, site, person, "report", project=project, report=name, tables=tables, chart=chart, number=number,
        rounds=rounds.rounds_of(site.db, project.id),
    )  # fmt: skip


def _computed(reader: Database, slug: str, name: str, number: int) -> tuple[list[Table], Any]:
    """(tables, chart) of a report."""
    if name == "strength":
        found = ranking(reader, slug, number)
        return found.tables, strength_chart(found.strengths.fitted)
    compute: dict[str, Callable[[Database, str, int], list[Table]]] = {"progress": progress, "agreement": agreement, "bias": bias}
    return compute[name](reader, slug, number), None


ROUTES: list[Route] = [
    route("/admin", overview, ADMINS),
    route("/admin/projects", add_project, ADMINS, ("POST",), is_form=True),
    route(PROJECT, project_page, ADMINS),
    route(f"{PROJECT}/state", set_project_state, ADMINS, ("POST",), is_form=True),
    route(f"{PROJECT}/rounds", begin_round, ADMINS, ("POST",), is_form=True),
]
LAST: list[Route] = [route(f"{PROJECT}/{{report}}", report, ADMINS)]
