"""The team's page of people: figures of each one, from as few queries for many as for few, and messages to one."""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from polyhead.client.annotate.admin import agreement, bias, messages, people
from polyhead.client.annotate.admin.habits import Habits, habits
from polyhead.client.annotate.admin.tables import Cell, Estimate, Share, Table, shown
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.keeping import verify
from polyhead.client.annotate.people import erasure
from polyhead.client.annotate.people.accounts import create_account
from polyhead.client.annotate.problems import Clash
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.statistics.intervals import TOO_FEW
from polyhead.client.annotate.storage.database import Database, new_id, sha256, to_json
from polyhead.client.annotate.web.access import moment
from polyhead.client.annotate.web.catalogs import catalog
from tests.client.annotate.site import RunningSite, begin, choice

NUM_ITEMS = 24
KINDS = {
    "choose": lambda order, draw: {"choice": draw.choice(order), "tied": [], "none_good": False, "least_bad": None},
    "rank": lambda order, draw: {"ranks": dict(zip(order, draw.choice([(1, 2, 3), (2, 1, 1), (1, 1, 2)]), strict=True))},
}


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[tuple[Database, list[str]]]:
    """(database, accounts) of two projects in which six people have judged nearly everything."""
    db, draw = Database.create(tmp_path / "a.db"), random.Random(3)
    accounts = [create_account(db, "annotator", f"amber-fox-{number}")[0] for number in range(6)]
    for slug in KINDS:
        begin(db, read_project(f"slug: {slug}\nkind: {slug}\nsource: stored\nqueue: {{overlap: 6}}"))
        lines = [{"prompt": f"{number}?", "replies": ["a", "b", "b" if number == 1 else f"c{number}"]} for number in range(NUM_ITEMS)]
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        import_items(db, projects.open_project(db, slug), tmp_path / "items.jsonl", "test")
    db.execute("INSERT INTO erasures VALUES ('x', 'all', 'running', 0, 'test')")  # opens the triggers' door
    db.execute("UPDATE candidates SET has_identity_leak = 1 WHERE text = 'c2'")
    db.execute("""UPDATE items SET gold_kind = 'gold', gold_json = '{}' WHERE json_extract(content_json, '$.messages[0].content') = '3?'""")
    with db.transaction():
        judge(db, accounts, draw)
    yield db, accounts
    db.close()


def judge(db: Database, accounts: list[str], draw: random.Random) -> None:
    """Answers as the pages store them; the third of a person's is withdrawn."""
    query = "SELECT i.id, p.kind FROM items i JOIN rounds r ON r.id = i.round_id JOIN projects p ON p.id = r.project_id ORDER BY i.rowid"
    items = db.all(query)
    for account in accounts:
        for number, item in enumerate(items):
            lease = {"item_id": item.id, "account_id": account, "state": "submitted", "leased_at": 1, "lease_until": 2, "active_ms": 9000}
            assignment = {"id": new_id(), **lease}
            db.insert("assignments", assignment)
            view = dialogues.make_view(db, str(assignment["id"]), [row.columns for row in dialogues.stored_replies(db, item.id, {})])
            order = [slot.id for slot in dialogues.slots_of(db, view)]
            body = to_json({**KINDS[item.kind](order, draw), "reasons": [], "comment": ""})
            answer = {
                "id": new_id(), "submission_id": new_id(), "assignment_id": assignment["id"], "view_id": view, "kind": item.kind,
                "body_json": body, "body_sha256": sha256(body), "polarity": "better", "project_version": 1, "locale": "en",
                "catalog_sha256": b"x", "client_json": "{}", "received_at": 5 + number, "active_ms": 1000 * (number % 5 + 1),
            }  # fmt: skip
            db.insert("answers", answer)
            if number == 2:
                db.change("answers", str(answer["id"]), {"state": "withdrawn"})


def test_figures_are_those_of_the_projects_pages(filled: tuple[Database, list[str]]) -> None:
    """Two ways: the pages of agreement and bias of each project, and the page of people over both; more people are no more queries."""
    db, accounts = filled
    found, num_queries = read(db)
    names = {row.id: row.pseudonym for row in db.all("SELECT id, pseudonym FROM accounts")}
    majority = [row for slug in KINDS for row in rows_of(agreement.agreement(db, slug), "majority")]
    for account in accounts:
        assert pair(found[account].same) == added(row[1] for row in majority if row[0] == names[account])
        assert found[account].same.total > TOO_FEW
        assert found[account].seconds == Estimate(3.0, None, 2 * NUM_ITEMS - 1, 0, TOO_FEW)
    slots = [row for slug in KINDS for row in rows_of(bias.bias(db, slug), "slots")]
    first = added(each.first_slot for each in found.values())
    assert first == added(row[2] for row in slots if row[1] == "A")
    assert first[1] > 6 * TOO_FEW
    with db.transaction():
        judge(db, [create_account(db, "annotator", f"teal-owl-{number}")[0] for number in range(3)], random.Random(4))
    assert (len(read(db)[0]), num_queries, read(db)[1]) == (9, 4, 4)


def read(db: Database) -> tuple[dict[str, Habits], int]:
    """(how each one answers, how many queries the page of people took)"""
    asked: list[str] = []
    db._connection.set_trace_callback(asked.append)
    rows, found = people.people(db), habits(db)
    for state in ("paused", "opted_out"):
        people.apart(db, state)
    db._connection.set_trace_callback(None)
    assert {(row.answers, row.assignments) for row in rows} == {(2 * NUM_ITEMS - 1, 2 * NUM_ITEMS)}
    return found, len(asked)


def rows_of(tables: Iterable[Table], name: str) -> Sequence[Sequence[Cell]]:
    return next(table for table in tables if table.name == name).rows


def pair(share: Cell) -> tuple[int, int]:
    assert isinstance(share, Share)
    return share.count, share.total


def added(shares: Iterable[Cell]) -> tuple[int, int]:
    pairs = [pair(each) for each in shares]
    return sum(count for count, _ in pairs), sum(total for _, total in pairs)


async def test_time_is_of_each_answer_and_few_make_no_figure(site: RunningSite) -> None:
    """A page counts from the beginning of its task: the second turn's time is what came after the first."""
    async with site.person(pseudonym="amber-fox-1") as person, site.person("admin") as admin:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        for number, spent in enumerate((10_000, 25_000)):
            turn = await person.say(assignment, "Hello there")
            body = choice((await person.state())["turns"][number]["view"])
            sent = {"submission_id": f"0123456789abcdef-{number}", "assignment_id": assignment, "turn_id": turn, "body": body}
            await person.post("/api/answers", {**sent, "timing": {"active_ms": spent}})
        account = site.db.value("SELECT id FROM accounts WHERE pseudonym = 'amber-fox-1'")
        assert habits(site.db)[account].seconds == Estimate(12.5, None, 2, 0, TOO_FEW)
        await person.form("/p/helpful/leave")
        now = site.db.now()
        text = (await admin.get("/admin/people?csv=people")).text
        page = (await admin.get("/admin/people")).text
    [row] = [row for row in csv.DictReader(io.StringIO(text)) if row["person"] == "amber-fox-1"]
    assert (row["median_seconds_value"], row["median_seconds_total"], row["has_left"]) == ("12.5", "2", "helpful")
    assert (row["first_slot_total"], row["like_others_total"], row["answers"]) == ("2", "0", "2")
    assert row["seen"] <= moment(now)
    assert row["seen"][:13] in (moment(now)[:13], moment(now - 3_600_000)[:13])
    words = catalog("en")
    assert f"<td>–, n = 2 ({words('admin.too_few')})</td>" in page
    assert shown(Share(12, 20, TOO_FEW), words).startswith("60%")


async def test_a_message_is_seen_until_it_is_read(site: RunningSite) -> None:
    """On the next page and with the next task, as text, by that person alone; read once, it is gone, and the team sees when."""
    locale, markup = "zh-Hans", "Please <b>slow</b> down\r\n<script>alert(1)</script>"
    words = catalog(locale)
    async with site.person("admin", "boss-1") as admin, site.person(pseudonym="amber-fox-1") as person, site.person() as other:
        await person.form("/me", locale=locale)
        account = site.db.value("SELECT id FROM accounts WHERE pseudonym = 'amber-fox-1'")
        for _ in range(2):
            sent = await admin.form(f"/admin/people/{account}/message", text=markup)
            assert sent.headers["location"].startswith("/admin/people")
        for path in ("/", "/me", "/p/helpful", "/me/answers"):
            page = (await person.get(path)).text
            assert words("message.title") in page, path
            assert "Please &lt;b&gt;slow&lt;/b&gt; down\n&lt;script&gt;" in page, path
        claimed = await person.claim()
        assert [each["text"] for each in claimed["messages"]] == [markup.replace("\r\n", "\n")] * 2
        await admin.form(f"/admin/people/{account}/state", state="paused")
        assert len((await person.claim())["messages"]) == 2, "a paused person is told why"
        first, second = (each["id"] for each in claimed["messages"])
        await other.post(f"/api/messages/{first}/read", {}, 404)
        await other.form(f"/me/messages/{first}", 404)
        await person.post(f"/api/messages/{first}/read", {})
        await person.post(f"/api/messages/{first}/read", {})
        await person.get("/")
        await person.form(f"/me/messages/{second}")
        assert words("message.title") not in (await person.get("/")).text
        assert (await person.claim())["messages"] == (await other.claim())["messages"] == []
        page = (await admin.get("/admin/people")).text
        assert "<script>alert" not in page
        assert page.count("boss-1</span>") == 2
        assert catalog("en")("admin.message.unread") not in page
    assert site.db.value("SELECT count(*) FROM events WHERE kind = 'team_messages.change'") == 2
    assert verify.problems(site.db) == []


async def test_a_message_that_cannot_be_sent_is_kept_on_the_page(site: RunningSite) -> None:
    """No text, too much of it, a word that would tell which head has replied; to somebody who cannot sign in there is no way."""
    words = catalog("en")
    refusals: dict[str, tuple[str, dict[str, Any]]] = {
        " \r\n": ("error.MESSAGE_TEXT", {"most": messages.MAX_CHARS}),
        "x" * (messages.MAX_CHARS + 1): ("error.MESSAGE_TEXT", {"most": messages.MAX_CHARS}),
        "you like canary-head more": ("error.MESSAGE_LEAK", {}),
    }
    async with site.person("admin") as admin:
        account, _ = create_account(site.db, "annotator", "amber-fox-1")
        for text, (key, values) in refusals.items():
            page = (await admin.form(f"/admin/people/{account}/message", 422, text=text)).text
            assert words(key, **values) in page
            assert f"{text.strip()}</textarea>" in page
        await admin.form("/admin/people/none/message", 404, text="Hello")
        await admin.form(f"/admin/people/{account}/state", state="disabled")
        await admin.form(f"/admin/people/{account}/message", 409, text="Hello")
    assert site.db.value("SELECT count(*) FROM team_messages") == 0


def test_messages_go_with_the_person(tmp_path: Path) -> None:
    """They may call the person by name: erased from the table, the log and the file, whatever is asked to be erased."""
    db = Database.create(tmp_path / "a.db")
    account, _ = create_account(db, "annotator", "amber-fox-1")
    messages.send(db, account, "Dear Zanzibar", "boss")
    erasure.erase(db, account, "identity", "test")
    with pytest.raises(Clash):
        messages.send(db, account, "Dear Zanzibar", "boss")
    assert verify.problems(db) == []
    db.close()
    assert b"Zanzibar" not in b"".join(path.read_bytes() for path in tmp_path.glob("a.db*"))
