"""Items over HTTP: files of them, the list, one of them with all that was said, and what can be changed in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from polyhead.client.annotate.items import storing
from polyhead.client.annotate.keeping import backup, verify
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.catalogs import catalog
from polyhead.client.annotate.web.security import MAX_BODY
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import Person, RunningSite, choice, running

STORED = "slug: work\nkind: choose\nsource: stored\nqueue: {overlap: 2}"
PATH = "/admin/p/work/items"
FIVE = [{"prompt": f"question {number}", "replies": ["a", "b"], "id": f"q{number}"} for number in range(5)]
GOOD = FIVE[:3]


async def upload(person: Person, lines: list[Any], status: int = 200, *, dry_run: str = "0", csrf: str = "") -> str:
    """The page that comes back. A line that is a text goes as it is."""
    text = "".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    data, files = {"csrf": csrf or person.csrf, "dry_run": dry_run}, {"file": ("items.jsonl", text.encode())}
    answer = await person.http.post(PATH, data=data, files=files, headers={"sec-fetch-site": "same-origin"})
    return str(person._took(answer, status).text)


async def test_a_file_is_checked_as_a_whole_and_stored_as_a_whole(tmp_path: Path) -> None:
    """Every wrong line is named and nothing is stored; a check stores nothing; then all are there, and duplicates are counted."""
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site, site.person("admin", "boss-1") as admin:
        await admin.get(PATH)
        wrong = await upload(admin, [GOOD[0], "{", {"prompt": 7, "replies": ["a", "b"]}, {**GOOD[1], "replys": []}], 422)
        for each in ("line 2: not JSON", "line 3: &#39;prompt&#39; must be a text", "line 4: unknown key &#39;replys&#39;"):
            assert each in wrong
        assert "line 1" not in wrong
        words = catalog("en")
        checked = await upload(admin, GOOD, dry_run="1")
        assert words("admin.import_checked", name="items.jsonl", items=3, lines=3, duplicates=0) in checked
        assert site.db.value("SELECT count(*) FROM items") == 0
        await upload(admin, GOOD[:2])
        done = await upload(admin, [*GOOD, GOOD[2]])
        assert words("admin.import_done", name="items.jsonl", items=1, lines=4, duplicates=3) in done
        assert site.db.value("SELECT count(*) FROM items") == 3
        [first, _] = site.db.all("SELECT * FROM imports ORDER BY created_at")
        assert (first.file_name, first.num_items, first.created_by) == ("items.jsonl", 2, site.db.value("SELECT id FROM accounts"))


async def test_people_are_served_while_a_file_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After every portion a request of somebody else is answered; nobody sees an item of the file before all are there; a second file
    is told to wait."""
    monkeypatch.setattr(storing, "PORTION_ROWS", 6)  # two items with two replies each
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site, site.person("admin") as admin, site.person() as person:
        await admin.get(PATH)
        seen = []

        async def look() -> None:
            if not seen:
                assert "another file is being stored" in await upload(admin, GOOD, 409)
            shown = (await admin.get(PATH)).text + (await admin.get("/admin/p/work/progress?csv=items")).text
            seen.append(((await person.claim("work"))["empty"], "question" in shown or "import" in shown.splitlines()[-1]))

        monkeypatch.setattr("polyhead.client.annotate.web.admin.items.let_others_in", look)
        assert "question 4" in await upload(admin, FIVE)
        assert seen == [("nothing_left", False)] * 3
        assert "state" in await person.claim("work")
        assert verify.problems(site.db) == []


async def test_a_file_whose_storing_ends_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an error at once, after a kill with the next start; the same file is stored afterwards, and the log says so much."""
    monkeypatch.setattr(storing, "PORTION_ROWS", 6)
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site, site.person("admin") as admin:
        await admin.get(PATH)
        portions = 0

        async def die() -> None:
            nonlocal portions
            portions += 1
            if portions == 3:
                backup.backup(site.db, tmp_path / "killed.db")  # what a kill would have left
                raise OSError("the disk is full")

        monkeypatch.setattr("polyhead.client.annotate.web.admin.items.let_others_in", die)
        await upload(admin, FIVE, 500)
        assert num_rows(site.db) == (0, 0, 0)
        await upload(admin, FIVE)
        assert num_rows(site.db) == (1, 5, 10)
        assert verify.problems(site.db) == []
    killed = Database.open(tmp_path / "killed.db")
    assert num_rows(killed) == (1, 4, 8)
    killed.close()
    async with running(tmp_path / "killed.db", FakeModel()) as site:
        assert num_rows(site.db) == (0, 0, 0)
        assert verify.problems(site.db) == []


def num_rows(db: Database) -> tuple[int, ...]:
    return tuple(db.value(f"SELECT count(*) FROM {table}") for table in ("imports", "items", "candidates"))


async def test_of_many_wrong_lines_the_first_are_named(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site, site.person("admin") as admin:
        await admin.get(PATH)
        page = await upload(admin, ["{"] * 25, 422)
        assert "line 20: not JSON" in page
        assert "line 21" not in page
        assert catalog("en")("admin.import_more", count=5) in page
        none = await admin.http.post(PATH, data={"csrf": admin.csrf}, headers={"sec-fetch-site": "same-origin"})
        assert (none.status_code, "no file was chosen" in none.text) == (422, True)


async def test_a_long_file_is_for_admins_alone(tmp_path: Path) -> None:
    """The limit of other bodies does not hold for files; of somebody else nothing is read at all."""
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site, site.person("admin") as admin, site.person() as person:
        await admin.get(PATH)
        long = {"prompt": "x" * (MAX_BODY + 1), "replies": ["a", "b"]}
        await upload(admin, [long])
        assert site.db.value("SELECT count(*) FROM items") == 1
        await upload(admin, [GOOD[0]], 403, csrf="0" * 64)

        async def endless() -> Any:
            yield b"x"
            raise AssertionError("the body of somebody who may not send it was read")

        await person.get("/")
        request = httpx.Request("POST", f"http://annotate.test{PATH}", content=endless(), headers={"sec-fetch-site": "same-origin"})
        request.headers["cookie"] = f"polyhead={person.http.cookies['polyhead']}"
        assert (await person.http.send(request)).status_code == 403


async def test_items_are_found_by_what_they_are(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site, site.person("admin") as admin, site.person() as person:
        await admin.get(PATH)
        await upload(admin, [*GOOD, {"prompt": "known", "replies": ["x", "y"], "gold": {"choice": 0}}])
        state = (await person.claim("work"))["state"]
        await person.answer(state["assignment"]["id"], None, choice(state["view"]))
        await person.claim("work")
        queries = ("", *(f"state={each}" for each in ("under_way", "complete")), *(f"source={each}" for each in ("gold", "import")))
        found = {}
        for query in (*queries, "text=QUESTION+2", "text=q1", "round=1", "round=2"):
            page = (await admin.get(f"{PATH}?{query}")).text
            found[query] = sum(f"question {number}<" in page for number in range(3))
        assert found == {
            "": 3, "state=under_way": 1, "state=complete": 0, "source=gold": 0, "source=import": 3, "text=QUESTION+2": 1, "text=q1": 1,
            "round=1": 3, "round=2": 0,
        }  # fmt: skip


async def test_a_long_list_has_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.client.annotate.admin.items.PAGE", 2)
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site, site.person("admin") as admin:
        await admin.get(PATH)
        await upload(admin, GOOD)
        first = (await admin.get(PATH)).text
        assert ("question 2" in first, "question 0" in first, "before=2" in first) == (True, False, True)
        second = (await admin.get(f"{PATH}?before=2")).text
        assert ("question 2" in second, "question 0" in second, "before=" in second) == (False, True, False)


async def test_one_item_is_retired_and_comes_back(tmp_path: Path) -> None:
    """Nobody gets it meanwhile; numbers out of range are named, and change nothing."""
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site, site.person("admin") as admin, site.person() as person:
        await admin.get(PATH)
        await upload(admin, GOOD[:1])
        key = site.db.value("SELECT id FROM items")
        one = f"{PATH}/{key}"
        await admin.get(one)
        await admin.form(one, act="state", state="retired")
        assert (await person.claim("work"))["empty"] == "nothing_left"
        await admin.form(one, act="state", state="open")
        assert "state" in await person.claim("work")
        await admin.form(one, act="numbers", overlap="5", priority="-3")
        assert "overlap must be a whole number, 1 to 100" in (await admin.form(one, 422, act="numbers", overlap="0", priority="1")).text
        [row] = site.db.all("SELECT * FROM items")
        assert (row.state, row.overlap, row.priority) == ("open", 5, -3)
        await admin.form(one, 422, act="burn")
        await admin.get(f"/admin/p/helpful/items/{key}", 404)


async def test_a_known_answer_is_given_to_an_item(tmp_path: Path) -> None:
    """What cannot be compared is named; afterwards an answer is judged by it."""
    async with running(tmp_path / "a.db", FakeModel(), STORED + "\n") as site, site.person("admin") as admin, site.person() as person:
        await admin.get(PATH)
        await upload(admin, GOOD[:1])
        one = f"{PATH}/{site.db.value('SELECT id FROM items')}"
        for text, problem in (
            ("{", "is not JSON"),
            ("[]", "must be an object"),
            ('{"choice": 2}', "must be the index of a reply, 0 to 1"),
        ):
            assert problem in (await admin.form(one, 422, act="gold", gold_kind="gold", gold=text)).text
        state = (await person.claim("work"))["state"]
        await admin.form(one, act="gold", gold_kind="attention", gold='{"choice": 1}')
        right = next(card["id"] for card in state["view"]["candidates"] if card["text"] == "b")
        await person.answer(state["assignment"]["id"], None, {"choice": right})
        assert site.db.value("SELECT is_passed FROM gold_results") == 1
        await admin.form(one, act="gold", gold_kind="", gold="")
        assert site.db.value("SELECT gold_json FROM items") is None


async def test_one_item_shows_what_was_said(site: RunningSite) -> None:
    """A live dialogue with its replies, their heads, the answer by letters, and markup as text."""
    markup = "<script>alert(1)</script>"
    async with site.person(pseudonym="amber-fox-1") as person, site.person("admin") as admin:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, markup)
        view = (await person.state())["turns"][0]["view"]
        await person.answer(assignment, turn, choice(view, 2, comment=markup))
        page = (await admin.get(f"/admin/p/helpful/items/{site.db.value('SELECT id FROM items')}")).text
    for each in ("amber-fox-1", "policy@313131", "canary-head@313131", "&#34;choice&#34;: &#34;C&#34;", "&lt;script&gt;"):
        assert each in page, each
    assert markup not in page
