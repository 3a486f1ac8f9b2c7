"""People, invites, and what people have reported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from polyhead.client.annotate.admin import messages, people, reports
from polyhead.client.annotate.admin.habits import NOTHING, Habits, habits
from polyhead.client.annotate.admin.tables import Cell, Share, Table, Word
from polyhead.client.annotate.people import accounts, erasure, pausing
from polyhead.client.annotate.people.accounts import ROLES, Person
from polyhead.client.annotate.problems import Clash, Invalid
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.statistics.intervals import TOO_FEW
from polyhead.client.annotate.storage.database import Database, Row
from polyhead.client.annotate.web.access import Site, moment, route
from polyhead.client.annotate.web.admin.page import ADMINS, csv_file, number_in, page, read_beside


async def people_page(request: Request, site: Site, person: Person) -> Response:
    if wanted := request.query_params.get("csv"):
        return csv_file(request, person, "people", [_people_table(*await read_beside(site.db, _read))], wanted)
    return await _people(request, site, person)


async def invite(request: Request, site: Site, person: Person) -> Response:
    """A link, shown once: what is stored is its hash."""
    form = await request.form()
    role, uses = str(form.get("role", "")), str(form.get("uses", "1"))
    if role not in ROLES or not uses.isdigit() or not 1 <= int(uses) <= 500:
        raise Invalid("needs a role and 1 to 500 uses", field="invite")
    token = accounts.create_invite(
        site.db, role, max_uses=int(uses), by=person.id, projects=[str(each) for each in form.getlist("projects")]
    )
    scheme = "https" if site.is_https else "http"
    link = f"{scheme}://{request.headers.get('host', '')}/i/{token}"
    return await _people(request, site, person, link=link)


async def lift_pause(request: Request, site: Site, person: Person) -> Response:
    """Somebody who was paused by known answers goes on."""
    pausing.lift(site.db, request.path_params["account_id"], str((await request.form()).get("project", "")), person.id)
    return RedirectResponse("/admin/people", 303)


async def revoke(request: Request, site: Site, person: Person) -> Response:
    people.revoke_invite(site.db, str((await request.form()).get("invite", "")), person.id)
    return RedirectResponse("/admin/people", 303)


async def set_person_state(request: Request, site: Site, person: Person) -> Response:
    people.set_state(site.db, request.path_params["account_id"], str((await request.form()).get("state", "")), person.id)
    return RedirectResponse("/admin/people", 303)


async def send_message(request: Request, site: Site, person: Person) -> Response:
    """Words to one person. What is wrong with them is said above, and they are kept."""
    account, text = people.find_person(site.db, request.path_params["account_id"]), str((await request.form()).get("text", ""))
    try:
        messages.send(site.db, account.id, text, person.id)
    except Invalid as error:
        return await _people(request, site, person, 422, unsent=Unsent(account.id, text, f"error.{error.name}"))
    return RedirectResponse("/admin/people#messages-title", 303)


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
    """Open ones, unless others are asked for."""
    query = request.query_params
    sought = reports.Sought(query.get("state", "open"), query.get("project", ""), number_in(request, "before"))
    found, following = reports.reports(site.db, sought)
    return page(
        request, site, person, "reports", reports=found, following=following, sought=sought, slugs=_slugs(site.db),
        states_of_reports=reports.STATES,
    )  # fmt: skip


async def close_report(request: Request, site: Site, person: Person) -> Response:
    reports.close_report(site.db, request.path_params["report_id"], person.id)
    return RedirectResponse("/admin/reports", 303)


@dataclass(frozen=True)
class Unsent:
    """A message that was refused: `wrong` is a key of the catalogs."""

    account_id: str = ""
    text: str = ""
    wrong: str = ""


NOTHING_UNSENT = Unsent()


async def _people(
    request: Request, site: Site, person: Person, status: int = 200, *, link: str = "", unsent: Unsent = NOTHING_UNSENT
) -> Response:
    everybody, habits_of, waits, left = await read_beside(site.db, _read)
    return page(
        request, site, person, "people", status, everybody=everybody, table=_people_table(everybody, habits_of, waits, left),
        invites=people.open_invites(site.db), slugs=_slugs(site.db), paused=pausing.everybody_paused(site.db), link=link, roles=ROLES,
        states=people.STATES, sent=messages.newest(site.db), unsent=unsent, most=messages.MAX_CHARS,
    )  # fmt: skip


def _slugs(db: Database) -> list[str]:
    return [row.slug for row in db.all("SELECT slug FROM projects ORDER BY slug")]


Found = tuple[Sequence[Row], dict[str, Habits], dict[str, list[str]], dict[str, list[str]]]


def _read(db: Database) -> Found:
    """(everybody, how each one answers, where each one waits for the team, what each one has left)"""
    return people.people(db), habits(db), people.apart(db, "paused"), people.apart(db, "opted_out")


def _people_table(
    everybody: Sequence[Row], habits_of: Mapping[str, Habits], waits: Mapping[str, list[str]], left: Mapping[str, list[str]]
) -> Table:
    rows: list[list[Cell]] = []
    for each in everybody:
        how = habits_of.get(each.id, NOTHING)
        rows.append([
            each.pseudonym, Word(f"admin.role.{each.role}"), Word(f"admin.state.{each.state}"), each.answers, each.minutes, how.seconds,
            Share(each.gold_passed, each.gold), how.same, how.first_slot, Share(each.none_good, each.answers),
            Share(each.skipped, each.assignments), each.late, f"{each.pasted / each.typed:.0%}" if each.typed else "–",
            moment(each.seen_at) or "–", ", ".join(each.json("projects")),
            ", ".join(waits.get(each.id, ())), ", ".join(left.get(each.id, ())),
        ])  # fmt: skip
    columns = (
        "person", "role", "state", "answers", "minutes", "median_seconds", "gold", "like_others", "first_slot", "none_good", "skipped",
        "late", "pasted", "seen", "sees", "waits_in", "has_left",
    )  # fmt: skip
    return Table("people", columns, rows, {"least": TOO_FEW})


ROUTES: list[Route] = [
    route("/admin/people", people_page, ADMINS),
    route("/admin/people/{account_id}/state", set_person_state, ADMINS, ("POST",), is_form=True),
    route("/admin/people/{account_id}/lift", lift_pause, ADMINS, ("POST",), is_form=True),
    route("/admin/people/{account_id}/message", send_message, ADMINS, ("POST",), is_form=True),
    route("/admin/people/{account_id}/erase", erase, ADMINS, ("POST",), is_form=True),
    route("/admin/invites", invite, ADMINS, ("POST",), is_form=True),
    route("/admin/invites/revoke", revoke, ADMINS, ("POST",), is_form=True),
    route("/admin/reports", reports_page, ADMINS),
    route("/admin/reports/{report_id}/close", close_report, ADMINS, ("POST",), is_form=True),
]
