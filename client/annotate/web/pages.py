"""HTML pages of people who judge: invite, sign-in, consent, home, guidelines, the task, settings. The task itself is drawn by static/."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from polyhead.client.annotate.answers import answers, reports
from polyhead.client.annotate.items import assignments
from polyhead.client.annotate.items.counting import Done, done_by_round
from polyhead.client.annotate.people import accounts, erasure, limits, messages, pausing, warning
from polyhead.client.annotate.people.accounts import Person
from polyhead.client.annotate.people.own_data import own_data
from polyhead.client.annotate.problems import Forbidden, NotThere
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.web import explaining, settings, state
from polyhead.client.annotate.web.access import ANYONE, PEOPLE, SIGNED_IN, Site, locale_of, route, words_of
from polyhead.client.annotate.web.catalogs import NAMES
from polyhead.client.annotate.web.security import address_of

SIGN_INS_A_MINUTE = 5
DATA_A_MINUTE = 2
CODES_A_MINUTE = 2
ANSWERS_SHOWN = 200


async def invite_page(request: Request, site: Site, person: Person | None) -> Response:
    """Looking at an invite spends nothing: previews of links look, too."""
    token = request.path_params["token"]
    accounts.find_invite(site.db, token)
    return site.page(request, "invite.html", None, invite=token, names=accounts.offer_pseudonyms(site.db), locale=locale_of(request, None))


async def accept_invite(request: Request, site: Site, person: Person | None) -> Response:
    """The new account, its sign-in code shown once."""
    site.limits.count("sign-in", address_of(dict(request.scope), is_behind_proxy=site.is_behind_proxy), SIGN_INS_A_MINUTE)
    form = await request.form()
    locale = _known_locale(str(form.get("locale", "")))
    languages = tuple(each for each in NAMES if each in form.getlist("languages")) or (locale,)
    zone = str(limits.zone_of(str(form.get("timezone", ""))[:60]))  # of the browser: caps are counted by this person's own day
    account, code = accounts.accept_invite(site.db, request.path_params["token"], str(form.get("pseudonym", "")), locale, languages, zone)
    token = accounts.open_session(site.db, account)
    made = accounts.person_of_session(site.db, token)
    return site.page(request, "welcome.html", made, token=token, code=accounts.shown_code(code))


async def login_page(request: Request, site: Site, person: Person | None) -> Response:
    return RedirectResponse("/", 303) if person else site.page(request, "login.html", None, wrong=False)


async def login(request: Request, site: Site, person: Person | None) -> Response:
    """A new session at each sign-in: a cookie that was there before opens nothing."""
    site.limits.count("sign-in", address_of(dict(request.scope), is_behind_proxy=site.is_behind_proxy), SIGN_INS_A_MINUTE)
    try:
        account = accounts.account_of_code(site.db, str((await request.form()).get("code", "")))
    except Forbidden:
        return site.page(request, "login.html", None, 403, wrong=True)
    response = RedirectResponse("/", 303)
    site.set_cookie(response, accounts.open_session(site.db, account.id))
    return response


async def logout(request: Request, site: Site, person: Person) -> Response:
    accounts.close_session(site.db, site.token(request))
    response = RedirectResponse("/login", 303)
    response.delete_cookie(site.cookie, path="/", secure=site.is_https, httponly=True, samesite="lax")
    return response


async def consent_page(request: Request, site: Site, person: Person) -> Response:
    return site.page(request, "consent.html", person)


async def consent(request: Request, site: Site, person: Person) -> Response:
    form = await request.form()
    if not (form.get("stored") and form.get("stop")):
        return site.page(request, "consent.html", person, 422)
    accounts.give_consent(site.db, person.id, words_of(request, person)("consent.text"), person.locale)
    return RedirectResponse("/", 303)


async def home(request: Request, site: Site, person: Person) -> Response:
    """A card a project, and the last answers."""
    if not accounts.has_consented(site.db, person.id):
        return RedirectResponse("/consent", 303)
    if person.role == "adjudicator":
        return RedirectResponse("/admin/review", 303)
    seen = [each for each in projects.list_projects(site.db) if not person.projects or each.row.slug in person.projects]
    offered = [each for each in seen if each.row.state in ("open", "paused") or _has_open(site, person, each)]
    left = [each for each in offered if limits.has_left(site.db, person.id, each.row.id)]
    done = done_by_round(site.db)
    cards = [{**_card(site, person, each), "done": _done(each, done)} for each in offered if each not in left]
    declined = [state.shown_project(each, person.locale) for each in left]
    return site.page(request, "home.html", person, projects=cards, declined=declined, last=_last(site, person))


async def leave_project(request: Request, site: Site, person: Person) -> Response:
    """Not for me, or for me after all. No reason is asked for."""
    project = projects.find_project(site.db, request.path_params["slug"])
    does_return = (await request.form()).get("back") == "1"
    (limits.come_back if does_return else limits.leave)(site.db, person.id, project)
    return RedirectResponse("/", 303)


async def guide_page(request: Request, site: Site, person: Person) -> Response:
    project = projects.open_project(site.db, request.path_params["slug"])
    text = project.config.words(project.config.guidelines, person.locale)
    return site.page(request, "guide.html", person, project=_card(site, person, project), guidelines=text)


async def examples_page(request: Request, site: Site, person: Person) -> Response:
    """Some of the person's own answers that differ from known ones; nothing to see where no warning is due."""
    project = projects.open_project(site.db, request.path_params["slug"])
    found = warning.due(site.db, person.id, project)
    if found is None:
        return RedirectResponse(f"/p/{project.row.slug}", 303)
    warning.note_shown(site.db, person.id, project, found)
    words = words_of(request, person)
    examples = [each for each in (explaining.explain(site.db, answer, words) for answer in found.examples) if each is not None]
    return site.page(request, "examples.html", person, project=_card(site, person, project), warning=found, examples=examples)


async def examples_read(request: Request, site: Site, person: Person) -> Response:
    """The person goes on, and may have said where the team is wrong."""
    project, form = projects.open_project(site.db, request.path_params["slug"]), await request.form()
    found = warning.due(site.db, person.id, project)
    for answer in found.examples if found else ():
        if text := str(form.get(f"says-{answer}", "")).strip():
            item = site.db.value("SELECT a.item_id FROM answers n JOIN assignments a ON a.id = n.assignment_id WHERE n.id = ?", answer)
            reports.add(site.db, person.id, item, "known_answer", text)
    warning.note_read(site.db, person.id, project)
    return RedirectResponse(f"/p/{project.row.slug}/task", 303)


async def task_page(request: Request, site: Site, person: Person) -> Response:
    """The shell of the task: what is in it comes from /api."""
    if not accounts.has_consented(site.db, person.id):
        return RedirectResponse("/consent", 303)
    project = projects.open_project(site.db, request.path_params["slug"])
    words = words_of(request, person)
    shown = state.shown_project(project, person.locale)
    guidelines = project.config.words(project.config.guidelines, person.locale)
    own = {key: text for key, text in words.words.items() if not key.startswith(("admin.", "help."))}
    return site.page(request, "task.html", person, project=shown, guidelines=guidelines, words=json.dumps(own, ensure_ascii=False))


async def me_page(request: Request, site: Site, person: Person) -> Response:
    return site.page(request, "me.html", person, wrong="")


async def save_me(request: Request, site: Site, person: Person) -> Response:
    """Language, theme, text size, whether Enter sends, keys."""
    form = await request.form()
    given = {name: str(form.get(name)) for name, values in settings.CHOICES.items() if form.get(name) in values}
    letters = settings.letters_of({act: str(form.get(f"key-{act}", "")) for act in settings.LETTERS} if "key-tie" in form else {})
    if letters is None:
        return site.page(request, "me.html", person, 422, wrong="me.twice")
    with site.db.transaction():
        kept = {**given, "letters": letters} if letters else given
        changes = {"settings_json": json.dumps(kept), "locale": _known_locale(str(form.get("locale", person.locale)))}
        site.db.change("accounts", person.id, changes, person.id)
    return RedirectResponse("/", 303)


async def help_page(request: Request, site: Site, person: Person) -> Response:
    """How the work goes: keys of each kind, what is stored, pauses, reports. With this person's own letters."""
    return site.page(request, "help.html", person, kinds=[kind.value for kind in Kind])


async def my_answers(request: Request, site: Site, person: Person) -> Response:
    """The newest ones; the file of the person's own data has all."""
    return site.page(request, "answers.html", person, last=_last(site, person, ANSWERS_SHOWN), most=ANSWERS_SHOWN)


async def new_code(request: Request, site: Site, person: Person) -> Response:
    """Shown once; the old code and all other sessions end."""
    site.limits.count("code", person.id, CODES_A_MINUTE)
    code = accounts.renew_code(site.db, person.id)
    return site.page(request, "welcome.html", person, token=accounts.open_session(site.db, person.id), code=accounts.shown_code(code))


async def stop(request: Request, site: Site, person: Person) -> Response:
    """Take part no more. Asked for twice: by a mark and by the button."""
    form = await request.form()
    if form.get("sure") != "1" or form.get("past") not in ("keep", "void"):
        return site.page(request, "me.html", person, 422, wrong="")
    erasure.stop(site.db, person.id, keeps_work=form.get("past") == "keep")
    for turn in dialogues.open_turns_of(site.db, person.id):
        site.turns.cancel(turn.id)
    response = site.page(request, "message.html", None, text=words_of(request, person)("stop.done"))
    response.delete_cookie(site.cookie, path="/", secure=site.is_https, httponly=True, samesite="lax")
    return response


async def read_message(request: Request, site: Site, person: Person) -> Response:
    """Words of the team are shown no more."""
    messages.mark_read(site.db, request.path_params["message_id"], person.id)
    return RedirectResponse("/admin" if person.role == "admin" else "/", 303)


async def my_data(request: Request, site: Site, person: Person) -> Response:
    """All that is stored of this person."""
    site.limits.count("data", person.id, DATA_A_MINUTE)
    headers = {"content-disposition": 'attachment; filename="polyhead-my-data.zip"'}
    return Response(own_data(site.db, person.id), media_type="application/zip", headers=headers)


async def health(request: Request, site: Site, person: Person | None) -> Response:
    """Two booleans, for probes."""
    is_writable = True
    try:
        with site.db.transaction():
            pass
    except Exception:
        is_writable = False
    return JSONResponse({"database": is_writable, "polyhead": site.model.is_up}, 200 if is_writable else 503)


def _card(site: Site, person: Person, project: OpenProject) -> dict[str, Any]:
    since = limits.day_start(site.db, person.id)
    return {
        **state.shown_project(project, person.locale),
        "today": assignments.count_today(site.db, person.id, project, since),
        "all": assignments.count_today(site.db, person.id, project, 0),
        "minutes": limits.worked_today(site.db, person.id).today_ms // 60_000,
        "cap": limits.cap_ms(project.config) // 60_000,
        "has_open": _has_open(site, person, project),
        "training": assignments.training(site.db, person.id, project),
        "is_warned": warning.due(site.db, person.id, project) is not None,
        "is_waiting": pausing.is_paused(site.db, person.id, project.row.id),
        "why_idle": project.why_idle,
    }


def _has_open(site: Site, person: Person, project: OpenProject) -> bool:
    """Whether something is under way: it may be finished whatever has become of the project."""
    return assignments.current(site.db, person.id, project) is not None


def _done(project: OpenProject, done: Mapping[str, Done]) -> Done | None:
    return None if project.config.is_free else done.get(project.round_id)


def _last(site: Site, person: Person, count: int = 10) -> list[dict[str, Any]]:
    now = site.db.now()
    return [
        {
            "id": row.id,
            "kind": row.kind,
            "slug": row.slug,
            "at": row.received_at,
            "minutes": (now - row.received_at) // 60_000,
            "can_undo": now - row.received_at <= answers.UNDO_MS,
        }
        for row in answers.last_of(site.db, person.id, count)
    ]


def _known_locale(locale: str) -> str:
    return locale if locale in NAMES else "en"


async def _gone(request: Request, site: Site, person: Person | None) -> Response:
    raise NotThere("no such page")


ROUTES: list[Route] = [
    route("/", home, SIGNED_IN),
    route("/i/{token}", invite_page, ANYONE),
    route("/i/{token}", accept_invite, ANYONE, ("POST",), is_form=True),
    route("/login", login_page, ANYONE),
    route("/login", login, ANYONE, ("POST",), is_form=True),
    route("/logout", logout, SIGNED_IN, ("POST",), is_form=True),
    route("/consent", consent_page, SIGNED_IN),
    route("/consent", consent, SIGNED_IN, ("POST",), is_form=True),
    route("/p/{slug}", guide_page, PEOPLE),
    route("/p/{slug}/task", task_page, PEOPLE),
    route("/p/{slug}/examples", examples_page, PEOPLE),
    route("/p/{slug}/examples", examples_read, PEOPLE, ("POST",), is_form=True),
    route("/me", me_page, SIGNED_IN),
    route("/me", save_me, SIGNED_IN, ("POST",), is_form=True),
    route("/help", help_page, SIGNED_IN),
    route("/me/answers", my_answers, PEOPLE),
    route("/me/code", new_code, SIGNED_IN, ("POST",), is_form=True),
    route("/me/data", my_data, SIGNED_IN),
    route("/me/messages/{message_id}", read_message, SIGNED_IN, ("POST",), is_form=True),
    route("/me/stop", stop, SIGNED_IN, ("POST",), is_form=True),
    route("/p/{slug}/leave", leave_project, PEOPLE, ("POST",), is_form=True),
    route("/healthz", health, ANYONE),
]
LAST: list[Route] = [route("/{path:path}", _gone, ANYONE)]
