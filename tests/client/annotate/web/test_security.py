"""Who may call what, from where, how often, and how much: every route and every role."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from typer.testing import CliRunner

from polyhead.client.annotate.admin import messages
from polyhead.client.annotate.commands import annotate_app, is_loopback
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.keeping import verify
from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.security import CONTENT_SECURITY_POLICY
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, ORIGIN, Person, RunningSite, begin, choice, ids, running

STATIC = Path(__file__).resolve().parents[4] / "client" / "annotate" / "web"
OPEN_TO_ALL = {"/i/{token}", "/login", "/healthz", "/{path:path}"}


def routes(site: RunningSite) -> list[Any]:
    return [route for route in site.app._app.routes if isinstance(route, Route)]


async def test_every_route_refuses_those_it_is_not_for(site: RunningSite) -> None:
    """No route without roles; a visitor gets to no other page than the listed ones, an annotator to none of an admin's, an adjudicator
    to disagreements alone."""
    async with site.visitor() as visitor, site.person() as annotator, site.person("adjudicator") as adjudicator:
        for route in routes(site):
            allowed = route.allow
            assert allowed, route.path
            assert ("" in allowed) == (route.path in OPEN_TO_ALL), route.path
            path = re.sub(r"\{\w+(:\w+)?\}", "x", route.path)
            method = next(iter(route.methods - {"HEAD"}))
            if "" not in allowed:
                answer = await visitor.http.request(method, path)
                assert answer.status_code in (303, 401, 403), (path, answer.status_code)
                assert answer.status_code != 303 or answer.headers["location"] == "/login", path
            assert ("annotator" in allowed) != path.startswith("/admin"), path
            for role, person in (("annotator", annotator), ("adjudicator", adjudicator)):
                if role not in allowed:
                    headers = {"sec-fetch-site": "same-origin", "x-csrf-token": person.csrf}
                    answer = await person.http.request(method, path, headers=headers, data={"csrf": person.csrf})
                    assert answer.status_code == 403, (role, path)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"sec-fetch-site": "same-origin"},
        {"x-csrf-token": "0" * 64, "sec-fetch-site": "same-origin"},
        {"x-csrf-token": "right", "sec-fetch-site": "cross-site"},
        {"x-csrf-token": "right", "sec-fetch-site": "same-site"},
        {"x-csrf-token": "right", "origin": "https://elsewhere.test"},
        {"x-csrf-token": "right"},
    ],
)
async def test_a_write_from_elsewhere_is_refused(site: RunningSite, headers: dict[str, str]) -> None:
    async with site.person() as person:
        headers = {name: person.csrf if value == "right" else value for name, value in headers.items()}
        answer = await person.http.post("/api/claim", json={"project": "helpful"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (403, "CSRF")
    assert site.db.value("SELECT count(*) FROM assignments") == 0


async def test_an_old_browser_says_its_origin(site: RunningSite) -> None:
    async with site.person() as person:
        headers = {"x-csrf-token": person.csrf, "origin": ORIGIN}
        assert (await person.http.post("/api/claim", json={"project": "helpful"}, headers=headers)).status_code == 200


async def test_headers_and_cookie(site: RunningSite) -> None:
    """Of pages, errors and files alike; the cookie of a loopback page is plain, of any other one secure and of this host."""
    async with site.visitor() as visitor:
        for path, status in (("/login", 200), ("/no/page", 404), ("/static/task.js", 200), ("/api/state", 401)):
            answer = await visitor.get(path, status)
            assert answer.headers["content-security-policy"] == CONTENT_SECURITY_POLICY
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert answer.headers["cache-control"] == "no-store"
        cookie = (await visitor.http.get("/login", headers={"cookie": ""})).headers.get("set-cookie", "")
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        site.app._app.state.site.is_https = True
        cookie = (await visitor.http.get("/login")).headers["set-cookie"]
    assert cookie.startswith("__Host-polyhead=")
    assert "Secure" in cookie
    assert "Path=/" in cookie
    assert "Domain" not in cookie


async def test_what_people_write_stays_text(site: RunningSite) -> None:
    """Markup in every text field comes back escaped in pages, and as JSON that no browser takes for a page."""
    markup = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    async with site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, markup)
        view = (await person.state())["turns"][0]["view"]
        await person.post(f"/api/assignments/{assignment}/draft", {"rev": 0, "draft": {"text": markup}}, method="PUT")
        await person.answer(assignment, turn, choice(view, comment=markup))
        await person.post("/api/reports", {"assignment_id": assignment, "text": markup, "reason": markup})
        messages.send(site.db, site.db.value("SELECT id FROM accounts"), markup, "boss")
        for path in ("/", "/p/helpful/task", "/me"):
            assert markup not in (await person.get(path)).text
        assert (await person.get("/api/state?project=helpful")).headers["content-type"] == "application/json"
        assert (await person.state())["turns"][0]["text"] == markup


async def test_another_persons_work_is_out_of_reach(site: RunningSite) -> None:
    async with site.person() as one, site.person() as other:
        assignment = (await one.claim())["state"]["assignment"]["id"]
        turn = await one.say(assignment, "Hello there")
        view = (await one.state())["turns"][0]["view"]
        await other.answer(assignment, turn, choice(view), 403)
        await other.get(f"/api/turns/{turn}/events", 403)
        await other.post(f"/api/assignments/{assignment}/skip", {"reason": "other"}, 403)
        stored = await one.answer(assignment, turn, choice(view))
        await other.post(f"/api/answers/{stored['answer_id']}/withdraw", {}, 403)


async def test_bodies_and_rates_are_limited(site: RunningSite) -> None:
    async with site.person() as person:
        await person.post("/api/claim", {"project": "helpful", "tab_id": "x" * 70_000}, 413)
        await person.post("/api/claim", [], 422)
    async with site.visitor() as visitor:
        await visitor.get("/login")
        for _ in range(4):  # the person above has signed in once from the same address
            await visitor.form("/login", 403, code="WRONG")
        answer = await visitor.form("/login", 429, code="WRONG")
    assert int(answer.headers["retry-after"]) <= 61


async def test_an_invite_is_spent_by_accounts_alone(site: RunningSite) -> None:
    token = accounts.create_invite(site.db, max_uses=1)
    async with site.visitor() as visitor:
        await visitor.get(f"/i/{token}")
        await visitor.form(f"/i/{token}", 200, pseudonym="amber-fox-10", locale="en")
        await visitor.get(f"/i/{token}", 404)
        await visitor.form(f"/i/{token}", 404, pseudonym="amber-fox-11", locale="en")
    assert site.db.value("SELECT count(*) FROM accounts") == 1


async def test_who_was_invited_to_a_project_gets_nothing_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By every route that names a project, an item or nothing; nothing tells another project from one that does not exist."""
    monkeypatch.setattr("polyhead.client.annotate.web.pages.SIGN_INS_A_MINUTE", 50)
    (tmp_path / "items.jsonl").write_text('{"prompt": "x", "replies": ["a", "b"]}', encoding="utf-8")
    other = "slug: other\nkind: rank\nsource: stored\ntitle: Something else\nqueue: {overlap: 3}"
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE, other) as site, site.person("admin") as admin:
        import_items(site.db, projects.open_project(site.db, "other"), tmp_path / "items.jsonl", "test")
        item = site.db.value("SELECT id FROM items")
        for _ in range(2):  # an adjudicator gets to items with two answers
            async with site.person() as person:
                state = (await person.claim("other"))["state"]
                one, two = ids(state["view"])
                await person.answer(state["assignment"]["id"], None, {"ranks": {one: 1, two: 2}})
        await admin.form("/admin/invites", 422, role="admin", projects="helpful")
        await admin.form("/admin/invites", 404, role="annotator", projects="none")
        for role, home in (("annotator", "/"), ("adjudicator", "/admin/review")):
            async with site.visitor() as person, site.person(role) as unbound:
                made = (await admin.form("/admin/invites", 200, role=role, projects="helpful")).text
                await accept(person, re.findall(r"/i/([\w-]{43})", made)[0])
                assert "Something else" in (await unbound.get(home)).text
                page = (await person.get(home)).text
                assert "Helpful replies" in page
                assert "Something else" not in page
                headers = {"sec-fetch-site": "same-origin", "x-csrf-token": person.csrf}
                paths = [(each.path, next(iter(each.methods - {"HEAD"}))) for each in routes(site) if role in each.allow]
                for path, method in [each for each in paths if "{slug}" in each[0]]:
                    answer = await person.http.request(method, path.replace("{slug}", "other"), headers=headers, data={"csrf": person.csrf})
                    assert answer.status_code == 404, path
                for path in ("/admin/items/" + item,) if role == "adjudicator" else ():
                    await unbound.get(path)
                    await person.get(path, 404)
                    await person.form(path, 404, first="1")
                if role == "annotator":
                    for path in ("/api/claim", "/api/breaks"):
                        refused = [await person.post(path, {"project": slug}, 404) for slug in ("other", "none")]
                        assert refused[0] == refused[1], path
                    await person.get("/api/state?project=other", 404)
                    assert (await person.claim())["state"]["phase"] == "compose"
                    assert (await unbound.claim("other"))["state"]["phase"] == "judge"
        assert site.db.value("SELECT count(*) FROM assignments a JOIN accounts p ON p.id = a.account_id WHERE p.projects_json != '[]'") == 1
        assert (await admin.get("/admin/people?csv=people")).text.count(",helpful,") == 2
        assert verify.problems(site.db) == []


async def accept(person: Person, token: str) -> None:
    """An account by an invite, with consent."""
    await person.get(f"/i/{token}")
    await person.form(f"/i/{token}", 200, pseudonym=f"amber-fox-{token[:6]}", locale="en")
    await person.get("/consent")
    await person.form("/consent", stored="1", stop="1")


def test_an_invite_of_the_command_line_names_projects(tmp_path: Path) -> None:
    db = Database.create(tmp_path / "a.db")
    begin(db, read_project(CHOOSE))
    for words, code, said in (("helpful", 0, "/i/"), ("none", 1, "no such project: 'none'")):
        done = CliRunner().invoke(annotate_app, ["invite", "--db", str(tmp_path / "a.db"), "--project", words])
        assert (done.exit_code, said in done.output) == (code, True)
    assert db.value("SELECT projects_json FROM invites") == '["helpful"]'
    db.close()


async def test_signing_in_makes_a_new_session_and_signing_out_ends_it(site: RunningSite) -> None:
    _, code = accounts.create_account(site.db, "annotator", "amber-fox-10")
    async with site.visitor() as visitor:
        await visitor.get("/login")
        before = visitor.http.cookies["polyhead"]
        await visitor.form("/login", code=code)
        session = visitor.http.cookies["polyhead"]
        assert session != before
        await visitor.get("/consent")
        await visitor.form("/logout")
        visitor.http.cookies.set("polyhead", session, domain="annotate.test")
        assert (await visitor.get("/", 303)).headers["location"] == "/login"


async def test_no_secret_is_stored_as_it_is(site: RunningSite) -> None:
    """Codes, sessions and invites are hashes in the database and in the log."""
    invite = accounts.create_invite(site.db)
    async with site.person(pseudonym="amber-fox-10") as person:
        secrets = [invite, person.http.cookies["polyhead"], person.csrf]
    tables = ("events", "accounts", "sessions", "invites")
    stored = "".join(str(row.columns) for table in tables for row in site.db.all(f"SELECT * FROM {table}"))
    assert not [secret for secret in secrets if secret in stored]


def test_templates_have_no_inline_script_or_style() -> None:
    """The content security policy would refuse them; a template that has one looks right until a browser opens it."""
    for path in (STATIC / "templates").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", text), path.name
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), path.name
    for path in (STATIC / "static").glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", path.read_text(encoding="utf-8")), path.name


@pytest.mark.parametrize(
    ("host", "is_so"), [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False)]
)
def test_no_start_beyond_loopback_without_tls(tmp_path: Path, host: str, is_so: bool) -> None:
    assert is_loopback(host) is is_so
    if not is_so:
        done = CliRunner().invoke(annotate_app, ["serve", "--db", str(tmp_path / "none.db"), "--host", host])
        assert done.exit_code == 1
        assert "without TLS" in done.output
