"""Pages of admins, and of adjudicators. They show heads and digests, so nobody who judges may take these routes.

Numbers are computed in a thread on a connection of its own that only reads: people who work do not wait for them.
"""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from polyhead.client.annotate import accounts, dialogues, projects
from polyhead.client.annotate.accounts import ROLES, Person
from polyhead.client.annotate.admin import adjudication, people, rounds
from polyhead.client.annotate.admin.agreement import agreement
from polyhead.client.annotate.admin.bias import bias
from polyhead.client.annotate.admin.charts import strength_chart
from polyhead.client.annotate.admin.progress import progress
from polyhead.client.annotate.admin.strengths import ranking
from polyhead.client.annotate.admin.tables import Cell, Share, Table, Word, shown, to_csv
from polyhead.client.annotate.care import erasure
from polyhead.client.annotate.config import ProjectConfig, read_project
from polyhead.client.annotate.database import Database, Row
from polyhead.client.annotate.exports.judgements import Filters
from polyhead.client.annotate.exports.writing import NAMES, note_export, write_files
from polyhead.client.annotate.problems import Clash, Invalid, NotThere
from polyhead.client.annotate.web.access import Site, route, words_of
from polyhead.client.annotate.yaml_reader import ConfigError

ADMINS, REVIEWERS = frozenset({"admin"}), frozenset({"admin", "adjudicator"})
REPORTS = ("progress", "agreement", "bias", "strength")
EXPORTS_A_MINUTE = 3
_MINUTE_MS = 60_000


async def overview(request: Request, site: Site, person: Person) -> Response:
    """All projects, and whether the server still serves what their rounds began with."""
    active = site.served.active if site.served else None
    lines = rounds.overview(site.db, active, person.locale)
    return _page(request, site, person, "overview", lines=lines, served=site.served, heads=rounds.heads_in_words(active))


async def add_project(request: Request, site: Site, person: Person) -> Response:
    """A project, or a new version of one, from YAML. What is wrong in it is said above the text, which is kept."""
    text = str((await request.form()).get("yaml", ""))
    try:
        stored = projects.store_project(site.db, read_project(text), person.id)
    except ConfigError as error:
        lines = rounds.overview(site.db, None, person.locale)
        return _page(request, site, person, "overview", 422, lines=lines, served=site.served, heads="", yaml=text, wrong=str(error))
    return RedirectResponse(f"/admin/p/{stored.slug}", 303)


async def project_page(request: Request, site: Site, person: Person) -> Response:
    project = projects.find_project(site.db, request.path_params["slug"])
    versions = rounds.versions_of(site.db, project.id)
    newest = rounds.config_text(versions[0][0].json("config"))
    return _page(
        request, site, person, "project", project=project, versions=versions, rounds=rounds.rounds_of(site.db, project.id), config=newest,
        served=site.served, formats=sorted(NAMES), in_words=rounds.heads_in_words,
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
    project, number = projects.find_project(site.db, slug), _round_number(request)
    tables, chart = await asyncio.to_thread(_computed, site.db, slug, name, number)
    if wanted := request.query_params.get("csv"):
        return _csv(request, person, slug, tables, wanted)
    return _page(
        request, site, person, "report", project=project, report=name, tables=tables, chart=chart, number=number,
        rounds=rounds.rounds_of(site.db, project.id),
    )  # fmt: skip


async def people_page(request: Request, site: Site, person: Person) -> Response:
    table = _people_table(people.people(site.db))
    if wanted := request.query_params.get("csv"):
        return _csv(request, person, "people", [table], wanted)
    return _page(
        request, site, person, "people", everybody=people.people(site.db), table=table, invites=people.open_invites(site.db), link="",
        roles=ROLES, states=people.STATES,
    )  # fmt: skip


async def invite(request: Request, site: Site, person: Person) -> Response:
    """A link, shown once: what is stored is its hash."""
    form = await request.form()
    role, uses = str(form.get("role", "")), str(form.get("uses", "1"))
    if role not in ROLES or not uses.isdigit() or not 1 <= int(uses) <= 500:
        raise Invalid("needs a role and 1 to 500 uses", field="invite")
    token = accounts.create_invite(site.db, role, max_uses=int(uses), by=person.id)
    scheme = "https" if site.is_https else "http"
    link = f"{scheme}://{request.headers.get('host', '')}/i/{token}"
    everybody = people.people(site.db)
    return _page(
        request, site, person, "people", everybody=everybody, table=_people_table(everybody), invites=people.open_invites(site.db),
        link=link, roles=ROLES, states=people.STATES,
    )  # fmt: skip


async def revoke(request: Request, site: Site, person: Person) -> Response:
    people.revoke_invite(site.db, str((await request.form()).get("invite", "")), person.id)
    return RedirectResponse("/admin/people", 303)


async def set_person_state(request: Request, site: Site, person: Person) -> Response:
    people.set_state(site.db, request.path_params["account_id"], str((await request.form()).get("state", "")), person.id)
    return RedirectResponse("/admin/people", 303)


async def erase(request: Request, site: Site, person: Person) -> Response:
    """Asked for twice: by a mark and by the button. It cannot be undone."""
    form, account = await request.form(), people.find_person(site.db, request.path_params["account_id"])
    if form.get("sure") != "1":
        raise Invalid("needs the mark", field="sure")
    if account.id == person.id:
        raise Clash("an admin's own account", code="OWN_ACCOUNT")
    for turn in dialogues.open_turns_of(site.db, account.id):
        site.turns.cancel(turn.id)
    erasure.erase(site.db, account.id, str(form.get("mode", "")), person.id)
    return RedirectResponse("/admin/people", 303)


async def reports_page(request: Request, site: Site, person: Person) -> Response:
    return _page(request, site, person, "reports", reports=people.reports(site.db), now=site.db.now())


async def close_report(request: Request, site: Site, person: Person) -> Response:
    people.close_report(site.db, request.path_params["report_id"], person.id)
    return RedirectResponse("/admin/reports", 303)


async def export_file(request: Request, site: Site, person: Person) -> Response:
    """Rows, their keys and the card, in one ZIP file."""
    site.limits.count("export", person.id, EXPORTS_A_MINUTE)
    form, slug = await request.form(), request.path_params["slug"]
    name = str(form.get("format", ""))
    if name not in NAMES:
        raise Invalid("unknown format", field="format")
    filters = Filters(int(str(form.get("round", "0"))) if str(form.get("round", "0")).isdigit() else 0)
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{slug}-{name}.jsonl"
        written = await asyncio.to_thread(_read, site.db, lambda reader: write_files(reader, slug, name, path, filters))
        note_export(site.db, slug, name, filters, written, person.id)
        packed = await asyncio.to_thread(_packed, Path(folder))
    headers = {"content-disposition": f'attachment; filename="{slug}-{name}.zip"'}
    return Response(packed, media_type="application/zip", headers=headers)


async def disputes_page(request: Request, site: Site, person: Person) -> Response:
    """What people disagree about."""
    project = projects.find_project(site.db, request.path_params["slug"])
    found = await asyncio.to_thread(_read, site.db, lambda reader: adjudication.disputed(reader, project.slug))
    return _page(request, site, person, "disputes", project=project, disputed=found)


async def review_home(request: Request, site: Site, person: Person) -> Response:
    """Where an adjudicator begins: the projects."""
    return _page(request, site, person, "review", lines=rounds.overview(site.db, None, person.locale))


async def case_page(request: Request, site: Site, person: Person) -> Response:
    """Before the first answer without the others' answers, afterwards with them."""
    return _case(request, site, person, adjudication.case(site.db, request.path_params["item_id"], person.id))


async def decide(request: Request, site: Site, person: Person) -> Response:
    item_id, form = request.path_params["item_id"], await request.form()
    case = adjudication.case(site.db, item_id, person.id)
    config = case.project.config
    body: dict[str, Any] = adjudication.body_of_form(config.kind, form, case.replies, config)
    body["comment"] = str(form.get("comment", ""))
    is_first = form.get("first") == "1"
    try:
        adjudication.adjudicate(site.db, case, person.id, body, is_first=is_first)
    except Invalid:
        return _case(request, site, person, case, 422, wrong=True)
    return RedirectResponse(f"/admin/items/{item_id}" if is_first else f"/admin/p/{case.project.row.slug}/disputes", 303)


def _case(request: Request, site: Site, person: Person, case: adjudication.Case, status: int = 200, *, wrong: bool = False) -> Response:
    config: ProjectConfig = case.project.config
    body = case.own.json("body") if case.own else {}
    return _page(
        request, site, person, "case", status, case=case, config=config, kind=config.kind.value, project=case.project.row, body=body,
        wrong=wrong, most=config.answer.strength.num_points, letters="ABCDEFGHI",
    )  # fmt: skip


def _computed(db: Database, slug: str, name: str, number: int) -> tuple[list[Table], Any]:
    """(tables, chart) of a report."""
    if name == "strength":
        found = _read(db, lambda reader: ranking(reader, slug, number))
        return found.tables, strength_chart(found.strengths.fitted)
    compute: dict[str, Callable[[Database, str, int], list[Table]]] = {"progress": progress, "agreement": agreement, "bias": bias}
    return _read(db, lambda reader: compute[name](reader, slug, number)), None


def _read(db: Database, act: Callable[[Database], Any]) -> Any:
    """What `act` finds on a connection of its own; called in a thread."""
    reader = db.reader()
    try:
        return act(reader)
    finally:
        reader.close()


def _people_table(everybody: Sequence[Row]) -> Table:
    rows: list[list[Cell]] = [
        [
            each.pseudonym, Word(f"admin.role.{each.role}"), Word(f"admin.state.{each.state}"), each.answers, each.minutes,
            Share(each.gold_passed, each.gold), Share(each.none_good, each.answers), Share(each.skipped, each.assignments), each.late,
            f"{each.pasted / each.typed:.0%}" if each.typed else "–",
        ]
        for each in everybody
    ]  # fmt: skip
    columns = ("person", "role", "state", "answers", "minutes", "gold", "none_good", "skipped", "late", "pasted")
    return Table("people", columns, rows)


def _csv(request: Request, person: Person, prefix: str, tables: Sequence[Table], name: str) -> Response:
    table = next((each for each in tables if each.name == name), None)
    if table is None:
        raise NotThere("no such table", field="csv")
    headers = {"content-disposition": f'attachment; filename="{prefix}-{table.name}.csv"'}
    return Response(to_csv(table, words_of(request, person)), media_type="text/csv; charset=utf-8", headers=headers)


def _round_number(request: Request) -> int:
    given = request.query_params.get("round", "0")
    return int(given) if given.isdigit() and len(given) < 7 else 0


def _page(request: Request, site: Site, person: Person, template: str, status: int = 200, **values: Any) -> Response:
    known: dict[str, Any] = {"yaml": "", "wrong": "", "reports_of": REPORTS, "cell": shown, **values}
    return site.page(request, f"admin/{template}.html", person, status, **known)


_PROJECT = "/admin/p/{slug}"
ROUTES: list[Route] = [
    route("/admin", overview, ADMINS),
    route("/admin/projects", add_project, ADMINS, ("POST",), is_form=True),
    route("/admin/people", people_page, ADMINS),
    route("/admin/people/{account_id}/state", set_person_state, ADMINS, ("POST",), is_form=True),
    route("/admin/people/{account_id}/erase", erase, ADMINS, ("POST",), is_form=True),
    route("/admin/invites", invite, ADMINS, ("POST",), is_form=True),
    route("/admin/invites/revoke", revoke, ADMINS, ("POST",), is_form=True),
    route("/admin/reports", reports_page, ADMINS),
    route("/admin/reports/{report_id}/close", close_report, ADMINS, ("POST",), is_form=True),
    route("/admin/review", review_home, REVIEWERS),
    route("/admin/items/{item_id}", case_page, REVIEWERS),
    route("/admin/items/{item_id}", decide, REVIEWERS, ("POST",), is_form=True),
    route(_PROJECT, project_page, ADMINS),
    route(f"{_PROJECT}/state", set_project_state, ADMINS, ("POST",), is_form=True),
    route(f"{_PROJECT}/rounds", begin_round, ADMINS, ("POST",), is_form=True),
    route(f"{_PROJECT}/export", export_file, ADMINS, ("POST",), is_form=True),
    route(f"{_PROJECT}/disputes", disputes_page, REVIEWERS),
    route(f"{_PROJECT}/{{report}}", report, ADMINS),
]


def _packed(folder: Path) -> bytes:
    """Its files as a ZIP archive. Not for the event loop: an export may be large."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for each in sorted(folder.iterdir()):
            archive.write(each, each.name)
    return packed.getvalue()
