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
from polyhead.client.annotate.problems import Clash, NotThere
from polyhead.client.annotate.projects import copying, projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.projects.yaml_reader import ConfigError
from polyhead.client.annotate.projects.yaml_writer import to_yaml
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.access import Site, route, words_of
from polyhead.client.annotate.web.admin.page import ADMINS, PROJECT, REPORTS, csv_file, number_in, page, read_beside


async def overview(request: Request, site: Site, person: Person) -> Response:
    """All projects, and whether the server still serves what their rounds began with."""
    active = site.served.active if site.served else None
    lines = rounds.overview(site.db, active, person.locale)
    return page(
        request, site, person, "overview", lines=lines, served=site.served, heads=rounds.heads_in_words(active),
        num_paused=pausing.num_paused(site.db), in_words=rounds.trunk_in_words, trunk=site.trunk,
    )  # fmt: skip


async def add_project(request: Request, site: Site, person: Person) -> Response:
    """A project, or a new version of one, from YAML. What is wrong in it is said above the text, which is kept."""
    text = str((await request.form()).get("yaml", ""))
    try:
        stored = projects.store_project(site.db, read_project(text), person.id)
    except ConfigError as error:
        lines = rounds.overview(site.db, None, person.locale)
        return page(
            request, site, person, "overview", 422, lines=lines, served=site.served, heads="", num_paused=0, yaml=text, wrong=str(error),
            in_words=rounds.trunk_in_words, trunk=site.trunk,
        )  # fmt: skip
    return RedirectResponse(f"/admin/p/{stored.slug}", 303)


async def project_page(request: Request, site: Site, person: Person) -> Response:
    return _project(request, site, person)


async def copy_project(request: Request, site: Site, person: Person) -> Response:
    """The same settings under a new name, as a draft. What is wrong with the name is said beside it."""
    slug, name = request.path_params["slug"], str((await request.form()).get("name", "")).strip()
    words = words_of(request, person)
    try:
        made = copying.copy_project(site.db, slug, name, person.id)
    except Clash as error:
        return _project(request, site, person, 409, name=name, wrong_name=words(f"error.{error.name}", name=name))
    except ConfigError:
        return _project(request, site, person, 422, name=name, wrong_name=words("error.NAME"))
    return RedirectResponse(f"/admin/p/{made.slug}", 303)


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


async def close_round(request: Request, site: Site, person: Person) -> Response:
    """Closes the round that is open, if one is; the project stays as it is."""
    project = projects.find_project(site.db, request.path_params["slug"])
    projects.close_round(site.db, project, person.id)
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


def _project(request: Request, site: Site, person: Person, status: int = 200, *, name: str = "", wrong_name: str = "") -> Response:
    project = projects.find_project(site.db, request.path_params["slug"])
    versions = rounds.versions_of(site.db, project.id)
    settings = to_yaml(projects.config_of(site.db, project.id, versions[0][0].version))
    return page(
        request, site, person, "project", status, project=project, versions=versions, rounds=rounds.rounds_of(site.db, project.id),
        yaml_text=settings, served=site.served, in_words=rounds.heads_in_words, name=name, wrong_name=wrong_name,
        closed=rounds.closed_by_trunk(site.db).get(project.slug), trunk=site.trunk, trunk_in_words=rounds.trunk_in_words,
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
    route(f"{PROJECT}/copy", copy_project, ADMINS, ("POST",), is_form=True),
    route(f"{PROJECT}/state", set_project_state, ADMINS, ("POST",), is_form=True),
    route(f"{PROJECT}/rounds", begin_round, ADMINS, ("POST",), is_form=True),
    route(f"{PROJECT}/rounds/close", close_round, ADMINS, ("POST",), is_form=True),
]
LAST: list[Route] = [route(f"{PROJECT}/{{report}}", report, ADMINS)]
