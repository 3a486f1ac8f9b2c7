"""JSON routes of the task page. Each answer that changes something carries the new state: a page never has to guess."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from polyhead.client.annotate.answers import answers, reports
from polyhead.client.annotate.items import assignments
from polyhead.client.annotate.people import accounts, limits, messages
from polyhead.client.annotate.people.accounts import Person
from polyhead.client.annotate.problems import Clash, Forbidden, Invalid, NotThere
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.replies import dialogues, user_turns
from polyhead.client.annotate.storage.database import Row
from polyhead.client.annotate.web import explaining, state
from polyhead.client.annotate.web.access import PEOPLE, Site, json_body, route, words_of
from polyhead.client.annotate.web.streams import turn_events

ANSWERS_A_MINUTE, TURNS_A_MINUTE = 60, 12


async def get_state(request: Request, site: Site, person: Person) -> Response:
    """What is on the table; nothing is handed out here."""
    return _state(site, person, _project(site, person, request.query_params.get("project", "")))


async def claim(request: Request, site: Site, person: Person) -> Response:
    """The open assignment, or the next one; with it what the team has written to this person."""
    body = await json_body(request)
    project = _project(site, person, body.get("project", ""))
    _check_may_work(site, person, project)
    if accounts.state_of(site.db, person.id) == "paused":
        return _empty(site, person, "account_paused")
    if not assignments.reads(site.db, person.id, project):
        return _empty(site, person, "language")
    if assignments.current(site.db, person.id, project) is None and (wait := limits.wait_of(site.db, person.id, project)) is not None:
        return _empty(site, person, wait.why, until=wait.until, can_skip=wait.can_skip)
    assignment = assignments.claim(site.db, person.id, project)
    if assignment is None:
        return _empty(site, person, project.why_idle or "nothing_left")
    site.tabs[assignment.id] = str(body.get("tab_id", ""))[:64]
    _go_on(site, assignment)
    return _state(site, person, project)


async def heartbeat(request: Request, site: Site, person: Person) -> Response:
    body, assignment = await json_body(request), _own(request, site, person)
    tab = str(body.get("tab_id", ""))[:64]
    if body.get("takes_over") or assignment.id not in site.tabs:
        site.tabs[assignment.id] = tab
    if site.tabs[assignment.id] != tab:
        raise Clash("another tab works on this", code="TAB_MOVED")
    active = body.get("active_ms", 0)
    if type(active) is not int:
        raise Invalid("must be a whole number", field="active_ms")
    lease = projects.project_of_item(site.db, assignment.item_id).config.queue.lease_min
    return JSONResponse({"lease_until": assignments.heartbeat(site.db, assignment, lease, active), "now": site.db.now()})


async def save_draft(request: Request, site: Site, person: Person) -> Response:
    body, assignment = await json_body(request), _own(request, site, person)
    rev = body.get("rev")
    if type(rev) is not int:
        raise Invalid("must be a whole number", field="rev")
    return JSONResponse({"rev": assignments.save_draft(site.db, assignment, rev, body.get("draft"))})


async def begin_turn(request: Request, site: Site, person: Person) -> Response:
    """A user's message: its replies are drawn from now on, whatever becomes of the page."""
    body, assignment = await json_body(request), _own(request, site, person)
    site.limits.count("turns", person.id, TURNS_A_MINUTE)
    text, pasted = body.get("text"), body.get("pasted_chars", 0)
    if not isinstance(text, str) or type(pasted) is not int:
        raise Invalid("must be a text", field="text")
    project = projects.project_of_item(site.db, assignment.item_id)
    if not user_turns.may_write(site.db, assignment, project.config):
        raise Clash("the user's messages are given here", code="SCRIPTED", field="text")
    if await site.model.opens_a_turn(project.config.prompt.format, text):
        raise Invalid("opens another speaker's turn", code="TEXT_OPENING", field="text")
    turn = dialogues.begin_turn(site.db, assignment, project, str(body.get("client_turn_id", "")), text, pasted=max(0, pasted))
    site.turns.start(turn)
    return JSONResponse({"turn_id": turn.id, "state": state.shown_state(site.db, assignment, person.locale)}, 202)


async def retry_turn(request: Request, site: Site, person: Person) -> Response:
    """Another attempt at a turn that has failed. A page that has not heard of a later attempt is told of that one."""
    turn, assignment = _own_turn(request, site, person)
    site.limits.count("turns", person.id, TURNS_A_MINUTE)
    turn = next((each for each in dialogues.turns_of(site.db, assignment) if each.number == turn.number), turn)
    if assignment.state in ("leased", "expired") and (turn.state == "failed" or site.turns.is_left(turn)):
        project = projects.project_of_item(site.db, assignment.item_id)
        turn = dialogues.begin_again(site.db, turn, assignment, project)
        site.turns.start(turn)
    return JSONResponse({"turn_id": turn.id, "state": state.shown_state(site.db, assignment, person.locale)}, 202)


async def events(request: Request, site: Site, person: Person) -> Response:
    turn, _ = _own_turn(request, site, person)
    return turn_events(site, turn, request.headers.get("last-event-id", ""))


async def submit(request: Request, site: Site, person: Person) -> Response:
    """One answer. When this returns, it is on the disk."""
    body = await json_body(request)
    site.limits.count("answers", person.id, ANSWERS_A_MINUTE)
    words = words_of(request, person)
    stored = answers.submit(site.db, person.id, body, words.locale, words.sha256)
    assignment = assignments.get(site.db, stored.assignment_id)
    if projects.project_of_item(site.db, assignment.item_id).config.kind.is_writing:
        site.scorer.wake()
    if not stored.is_over:
        _go_on(site, assignment)
    shown = state.shown_state(site.db, assignment, person.locale)
    following = "item" if stored.is_over else "turn"
    explained = explaining.explain(site.db, stored.answer_id, words) if _is_training(site, assignment) else None
    told = explained.plain() if explained else None
    return JSONResponse({"answer_id": stored.answer_id, "next": following, "state": shown, "explained": told})


async def withdraw(request: Request, site: Site, person: Person) -> Response:
    """Undo."""
    assignment = answers.withdraw(site.db, request.path_params["answer_id"], person.id)
    for turn in site.db.all("SELECT t.id FROM turns t JOIN dialogues d ON d.id = t.dialogue_id WHERE d.assignment_id = ?", assignment.id):
        if site.db.value("SELECT state FROM turns WHERE id = ?", turn.id) == "abandoned":
            site.turns.cancel(turn.id)
    slug = projects.project_of_item(site.db, assignment.item_id).row.slug
    return JSONResponse({"state": state.shown_state(site.db, assignment, person.locale), "project": slug})


async def skip(request: Request, site: Site, person: Person) -> Response:
    body, assignment = await json_body(request), _own(request, site, person)
    assignments.skip(site.db, assignment, str(body.get("reason", "")), str(body.get("text", "")))
    for turn in dialogues.turns_of(site.db, assignment):
        site.turns.cancel(turn.id)
    return JSONResponse({"next": "item"})


async def release(request: Request, site: Site, person: Person) -> Response:
    assignments.release(site.db, _own(request, site, person))
    return JSONResponse({"next": "break"})


async def skip_break(request: Request, site: Site, person: Person) -> Response:
    """Go on without the break, once."""
    body = await json_body(request)
    limits.skip_break(site.db, person.id, _project(site, person, body.get("project", "")))
    return JSONResponse({"next": "item"})


async def finish(request: Request, site: Site, person: Person) -> Response:
    """No further turn in this dialogue."""
    assignment = _own(request, site, person)
    project = projects.project_of_item(site.db, assignment.item_id)
    answered = [turn for turn in dialogues.turns_of(site.db, assignment) if _is_answered(site, turn)]
    if project.config.kind is Kind.PROBE or len(answered) < project.config.dialogue.min_turns:
        raise Clash(f"the dialogue needs {project.config.dialogue.min_turns} answered turns", code="TOO_FEW_TURNS")
    if assignment.state in ("leased", "expired"):
        for turn in dialogues.turns_of(site.db, assignment):
            site.turns.cancel(turn.id)
        assignments.finish(site.db, assignment)
    return JSONResponse({"next": "item"})


async def read_message(request: Request, site: Site, person: Person) -> Response:
    """Words of the team are shown no more."""
    messages.mark_read(site.db, request.path_params["message_id"], person.id)
    return JSONResponse({"is_read": True})


async def report(request: Request, site: Site, person: Person) -> Response:
    """Something that somebody should look at."""
    body = await json_body(request)
    assignment = assignments.own(site.db, str(body.get("assignment_id", "")), person.id)
    candidate = body.get("candidate_id")
    if candidate is not None and not site.db.one(
        "SELECT 1 FROM view_slots s JOIN views v ON v.id = s.view_id WHERE s.candidate_id = ? AND v.assignment_id = ?",
        candidate,
        assignment.id,
    ):
        raise Invalid("was not shown here", field="candidate_id")
    reason, text = str(body.get("reason", "other")), str(body.get("text", ""))
    return JSONResponse({"report_id": reports.add(site.db, person.id, assignment.item_id, reason, text, candidate)})


def _project(site: Site, person: Person, slug: Any) -> OpenProject:
    """A project that this person sees."""
    person.check_sees(str(slug))
    return projects.open_project(site.db, str(slug))


def _state(site: Site, person: Person, project: OpenProject) -> Response:
    current = state.current_state(site.db, person.id, project, person.locale)
    banner = "down" if project.is_live and not site.model.is_up else None
    today = assignments.count_today(site.db, person.id, project, limits.day_start(site.db, person.id))
    return JSONResponse({"state": current, "banner": banner, "today": today, "messages": _messages(site, person)})


def _empty(site: Site, person: Person, why: str, **more: Any) -> Response:
    """No item now. `why` is a key of the page's sentences: done.WHY."""
    return JSONResponse({"empty": why, "now": site.db.now(), "messages": _messages(site, person), **more})


def _messages(site: Site, person: Person) -> list[dict[str, Any]]:
    return [{"id": row.id, "text": row.text} for row in messages.unread(site.db, person.id)]


def _go_on(site: Site, assignment: Row) -> None:
    """Where nobody here writes what the user says next, the turn begins with the handing out, or with the answer to the one before."""
    turn = user_turns.go_on(site.db, assignment, projects.project_of_item(site.db, assignment.item_id))
    if turn is not None:
        site.turns.start(turn)


def _check_may_work(site: Site, person: Person, project: OpenProject) -> None:
    if not accounts.has_consented(site.db, person.id):
        raise Forbidden("consent is missing", code="CONSENT")
    if person.role == "admin" and not project.config.allow_admin_work:
        raise Forbidden("an admin can read this project's answers", code="ADMIN_WORK")


def _is_training(site: Site, assignment: Row) -> bool:
    return bool(site.db.value("SELECT gold_kind = 'training' FROM items WHERE id = ?", assignment.item_id))


def _own(request: Request, site: Site, person: Person) -> Row:
    return assignments.own(site.db, request.path_params["assignment_id"], person.id)


def _own_turn(request: Request, site: Site, person: Person) -> tuple[Row, Row]:
    turn = site.db.one("SELECT * FROM turns WHERE id = ?", request.path_params["turn_id"])
    if turn is None:
        raise NotThere("no such turn", field="turn_id")
    key: Any = site.db.value("SELECT assignment_id FROM dialogues WHERE id = ?", turn.dialogue_id)
    return turn, assignments.own(site.db, key, person.id)


def _is_answered(site: Site, turn: Row) -> bool:
    return site.db.one("SELECT 1 FROM answers WHERE turn_id = ? AND state = 'current'", turn.id) is not None


_ASSIGNMENT = "/api/assignments/{assignment_id}"
ROUTES: list[Route] = [
    route("/api/state", get_state, PEOPLE),
    route("/api/claim", claim, PEOPLE, ("POST",)),
    route(f"{_ASSIGNMENT}/heartbeat", heartbeat, PEOPLE, ("POST",)),
    route(f"{_ASSIGNMENT}/draft", save_draft, PEOPLE, ("PUT",)),
    route(f"{_ASSIGNMENT}/turns", begin_turn, PEOPLE, ("POST",)),
    route(f"{_ASSIGNMENT}/skip", skip, PEOPLE, ("POST",)),
    route(f"{_ASSIGNMENT}/release", release, PEOPLE, ("POST",)),
    route(f"{_ASSIGNMENT}/finish", finish, PEOPLE, ("POST",)),
    route("/api/turns/{turn_id}/events", events, PEOPLE),
    route("/api/turns/{turn_id}/retry", retry_turn, PEOPLE, ("POST",)),
    route("/api/answers", submit, PEOPLE, ("POST",)),
    route("/api/answers/{answer_id}/withdraw", withdraw, PEOPLE, ("POST",)),
    route("/api/reports", report, PEOPLE, ("POST",)),
    route("/api/messages/{message_id}/read", read_message, PEOPLE, ("POST",)),
    route("/api/breaks", skip_break, PEOPLE, ("POST",)),
]
