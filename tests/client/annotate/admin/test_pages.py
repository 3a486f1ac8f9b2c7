"""Pages of the team over HTTP: what goes on, what it is worth, and a second look at what people disagree about."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import html
import io
import json
import random
import re
import tracemalloc
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead.client.annotate.admin import agreement, bias, health, log, rounds, strengths, tables
from polyhead.client.annotate.admin.tables import Estimate, Share, Table
from polyhead.client.annotate.commands import annotate_app
from polyhead.client.annotate.exports.comparable import all_judgements, values_of
from polyhead.client.annotate.exports.judgements import Judgement
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import Kind, read_project
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.statistics.intervals import Interval
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.access import moment
from polyhead.client.annotate.web.catalogs import NAMES, catalog
from polyhead.client.annotate.web.noticing import notice
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, Person, RunningSite, choice, running

PAGES = (
    *(f"/admin{path}" for path in ("", "/people", "/reports", "/review", "/health", "/log")),
    *(f"/admin/p/helpful{path}" for path in ("", "/disputes", "/items", "/export")),
)
REPORTS = tuple(f"/admin/p/helpful/{name}" for name in ("progress", "agreement", "bias", "strength"))
RANK = "slug: work\nkind: rank\nsource: stored\nqueue: {overlap: 2}"


async def one_answer(person: Person, index: int = 0) -> dict[str, Any]:
    assignment = (await person.claim())["state"]["assignment"]["id"]
    turn = await person.say(assignment, "Why is the sky blue?")
    view = (await person.state())["turns"][0]["view"]
    return await person.answer(assignment, turn, choice(view, index))


def table(found: list[Table], name: str) -> dict[str, Any]:
    """First cell of each row -> the second."""
    return {getattr(row[0], "key", row[0]): row[1] for row in next(each for each in found if each.name == name).rows}


@pytest.mark.parametrize("locale", NAMES)
async def test_every_page_in_both_languages(site: RunningSite, locale: str) -> None:
    """With and without answers; every text is in the catalogs, and what people wrote stays text."""
    async with site.person("admin") as admin, site.person() as person:
        await admin.form("/me", locale=locale)
        for path in (*PAGES, *REPORTS):
            await admin.get(path)
        stored = await one_answer(person)
        assignment = site.db.value("SELECT assignment_id FROM answers WHERE id = ?", stored["answer_id"])
        await person.post("/api/reports", {"assignment_id": assignment, "text": "<script>alert(1)</script>"})
        for path in (*PAGES, *REPORTS):
            page = (await admin.get(path)).text
            assert catalog(locale)("admin.title") in page, path
            assert "<script>alert" not in page
        await admin.get("/admin/p/helpful/nothing", 404)
        await admin.get("/admin/p/none/progress", 404)


async def test_a_project_from_yaml_its_rounds_and_states(site: RunningSite) -> None:
    """A wrong line is named above the text; a round is bound to what is served; a paused project hands out nothing."""
    async with site.person("admin") as admin, site.person() as person:
        wrong = (await admin.form("/admin/projects", 422, yaml="slug: new\nkind: chose\n")).text
        assert "line 2" in wrong
        assert "kind: chose" in wrong
        made = await admin.form("/admin/projects", yaml=CHOOSE.replace("helpful", "new"))
        assert made.headers["location"] == "/admin/p/new"
        await admin.form("/admin/p/new/rounds", name="first week")
        [row] = site.db.all("SELECT r.* FROM rounds r JOIN projects p ON p.id = r.project_id WHERE p.slug = 'new'")
        assert (row.name, row.generation, row.trunk_id) == ("first week", 424242, site.app._app.state.site.trunk.trunk_id)
        assert row.json("heads") == {"policy": 313131}
        await admin.form("/admin/projects", yaml=CHOOSE.replace("helpful", "new").replace("n: 2", "n: 1"))
        assert "-    &#34;n&#34;: 2" in (await admin.get("/admin/p/new")).text
        await admin.form("/admin/p/new/state", state="paused")
        assert (await person.claim("new"))["empty"] == "paused"
        await admin.form("/admin/p/new/state", state="burnt", status=422)


async def test_a_round_is_closed_and_its_project_is_not(tmp_path: Path) -> None:
    """What is under way is finished, nobody gets anything new until the next round, and the page says who can begin it."""
    path, words = tmp_path / "a.db", catalog("en")
    async with running(path, FakeModel(), CHOOSE) as site, site.person("admin") as admin, site.person() as busy, site.person() as idle:
        assignment = (await busy.claim())["state"]["assignment"]["id"]
        assert words("admin.close_round", round=1) in (await admin.get("/admin/p/helpful")).text
        for _ in range(2):  # a second press changes nothing
            await admin.form("/admin/p/helpful/rounds/close")
        [row] = site.db.all("SELECT r.*, p.state AS of_project FROM rounds r JOIN projects p ON p.id = r.project_id")
        assert row.closed_at is not None
        assert (row.close_reason, row.of_project) == ("", "open")
        assert site.db.value("SELECT count(*) FROM events WHERE kind = 'rounds.change' AND body_json LIKE '%closed_at%'") == 1
        page = (await admin.get("/admin/p/helpful")).text
        assert words("admin.no_round") in page
        assert "/rounds/close" not in page
        assert (await idle.claim())["empty"] == "paused"
        assert words("home.paused") in (await idle.get("/")).text
        turn = await busy.say(assignment, "Why is the sky blue?")
        await busy.answer(assignment, turn, choice((await busy.state())["turns"][0]["view"]))
        await admin.form("/admin/p/none/rounds/close", 404)
        await admin.form("/admin/p/helpful/rounds")
        assert words("admin.no_round") not in (await admin.get("/admin/p/helpful")).text
        assert (await idle.claim())["state"]["phase"] == "compose"
    for code, said in ((0, "round 2 of helpful is closed"), (1, "no round is open: helpful")):
        done = CliRunner().invoke(annotate_app, ["close-round", "helpful", "--db", str(path)])
        assert done.exit_code == code
        assert said in done.output


async def test_heads_that_change_are_said(site: RunningSite) -> None:
    shared = site.app._app.state.site
    async with site.person("admin") as admin:
        assert "313131 →" not in (await admin.get("/admin")).text
        await notice(shared, dataclasses.replace(shared.served, active={"policy": 313132}, generation=424243))
        [noted] = site.db.all("SELECT at FROM events WHERE kind = 'generations.noted' AND body_json LIKE '%424243%'")
        words = catalog("en")("admin.changed", project="helpful", changes="policy 313131 → 313132", time=moment(noted.at))
        for _ in range(2):
            assert words in (await admin.get("/admin")).text
            await notice(shared, shared.served)
    assert site.db.value("SELECT count(*) FROM events WHERE kind = 'generations.noted'") == 2
    assert rounds.changes_between({"policy": 1}, {"policy": 2}, ("policy@1",)) == ""  # a pinned version does not move
    assert rounds.changes_between({"policy": 1}, None, ("policy",)) == ""


async def test_progress_counts_every_answer_once(site: RunningSite) -> None:
    """Used, taken back, or left out with a reason: their sum is what is stored."""
    site.model.texts = ["a", "b", "I am canary-head", "d"]
    async with site.person() as person, site.person() as other, site.person("admin") as admin:
        await one_answer(person)
        taken = await one_answer(other)
        await other.post(f"/api/answers/{taken['answer_id']}/withdraw", {})
        text = (await admin.get("/admin/p/helpful/progress?csv=left_out")).text
    rows = {row["reason"]: int(row["count"]) for row in csv.DictReader(io.StringIO(text))}
    words = catalog("en")
    assert rows == {words("admin.row.used"): 0, words("admin.left_out.leak"): 1, words("admin.left_out.withdrawn"): 1}
    assert sum(rows.values()) == site.db.value("SELECT count(*) FROM answers")


async def test_people_are_invited_paused_and_disabled(site: RunningSite) -> None:
    async with site.person("admin", "boss-1") as admin, site.person(pseudonym="amber-fox-1") as person, site.visitor() as visitor:
        page = (await admin.form("/admin/invites", 200, role="adjudicator", uses="2")).text
        [link] = re.findall(r"http://annotate.test(/i/[\w-]+)", page)
        await visitor.get(link)
        assert link.removeprefix("/i/") not in (await admin.get("/admin/people")).text  # shown once
        key = site.db.value("SELECT hex(token_sha256) FROM invites")
        await admin.form("/admin/invites/revoke", invite=key)
        await visitor.get(link, 404)
        account = site.db.value("SELECT id FROM accounts WHERE pseudonym = 'amber-fox-1'")
        await admin.form(f"/admin/people/{account}/state", state="paused")
        assert (await person.claim())["empty"] == "account_paused"
        await admin.form(f"/admin/people/{account}/state", state="disabled")
        await person.get("/", 303)  # signed out
        boss = site.db.value("SELECT id FROM accounts WHERE pseudonym = 'boss-1'")
        await admin.form(f"/admin/people/{boss}/state", 409, state="disabled")


async def test_reports_are_found_by_state_and_project(site: RunningSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Open ones at first, a page at a time; a list of two hundred ended there."""
    monkeypatch.setattr("polyhead.client.annotate.admin.reports.PAGE", 2)
    async with site.person("admin") as admin, site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        for number in range(3):
            await person.post("/api/reports", {"assignment_id": assignment, "text": f"report-{number}"})
        first = (await admin.get("/admin/reports")).text
        assert [f"report-{number}" in first for number in range(3)] == [False, True, True]
        [older] = re.findall(r'href="(\?state=open&amp;project=&amp;before=\d+)"', first)
        assert "report-0" in (await admin.get(f"/admin/reports{html.unescape(older)}")).text
        newest = site.db.value("SELECT id FROM reports WHERE text = 'report-2'")
        await admin.form(f"/admin/reports/{newest}/close")
        for query, seen in (("", False), ("?state=closed", True), ("?state=", True), ("?state=closed&project=none", False)):
            assert ("report-2" in (await admin.get(f"/admin/reports{query}")).text) is seen, query
        await admin.form("/admin/reports/none/close", 404)


async def test_an_export_is_counted_taken_and_listed(site: RunningSite) -> None:
    """The count says what would be left out and stores nothing; the file is rows, keys and card; a wrong choice is named."""
    path = "/admin/p/helpful/export"
    async with site.person() as person, site.person("admin", "boss-1") as admin:
        await one_answer(person)
        counted = (await admin.form(path, 200, act="count", format="polyhead-pairs", min_agreement="60")).text
        assert catalog("en")("admin.export.counted", rows=0, answers=0) in counted
        assert catalog("en")("admin.left_out.judged_once") in counted
        assert site.db.value("SELECT count(*) FROM exports") == 0
        answer = await admin.form(path, 200, act="download", format="polyhead-pairs", round="0", exclude="leak", ties="margin0")
        for wrong in ({"format": "../etc"}, {"since": "now"}, {"min_agreement": "much"}, {"exclude": "lies"}):
            await admin.form(path, 422, **{"act": "download", "format": "polyhead-pairs", **wrong})
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            names = sorted(archive.namelist())
            rows = archive.read("helpful-polyhead-pairs.jsonl").decode().splitlines()
        assert names == [f"helpful-polyhead-pairs.{end}" for end in ("jsonl", "keys.jsonl", "md")]
        assert len(rows) == 3
        assert re.search(r"<td>3</td>.*<td>boss-1</td>", (await admin.get(path)).text)
        [noted] = site.db.all("SELECT * FROM exports")
        assert noted.json("filters")["choices"] == ["excluded: leak, a reply that was shown names its head"]


async def test_the_log_is_read_by_kind_person_and_thing(site: RunningSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.client.annotate.admin.log.PAGE", 3)
    async with site.person(pseudonym="amber-fox-1") as person, site.person("admin", "boss-1") as admin:
        await one_answer(person)
        assignment = site.db.value("SELECT id FROM assignments")
        [answer] = [row.seq for row in site.db.all("SELECT seq FROM events WHERE kind = 'answers.insert'")]
        for query in (
            "kind=answers.insert",
            "kind=answers.insert&actor=amber-fox-1",
            f"kind=answers.insert&actor=amber-fox-1&before={answer + 1}",
        ):
            page = (await admin.get(f"/admin/log?{query}")).text
            assert f">{answer}</th>" in page, query
            assert "&#34;none_good&#34;" in page
        for query in ("kind=answers.insert&actor=boss-1", f"kind=answers.insert&before={answer}", "about=nothing"):
            assert f">{answer}</th>" not in (await admin.get(f"/admin/log?{query}")).text, query
        assert f">{answer}</th>" in (await admin.get(f"/admin/log?kind=answers.insert&about={assignment}")).text
        assert "?kind=candidates.insert&amp;actor=&amp;about=&amp;before=" in (await admin.get("/admin/log?kind=candidates.insert")).text
    kinds = {row.kind for row in site.db.all("SELECT DISTINCT kind FROM events")}
    assert set(log.kinds(site.db)) == kinds


async def test_health_says_what_somebody_should_do(tmp_path: Path) -> None:
    """A server that does not answer, backups that are not made or too old, replies that were not drawn, answers that waited."""
    words = catalog("en")
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE, backup_dir=tmp_path / "backups") as site, site.person() as person:
        db, shared = site.db, site.app._app.state.site
        await one_answer(person)
        facts = health.Facts(True, shared.served, shared.trunk, None, has_trainer=True)
        concerns, _ = health.health(db, facts)
        assert [each.key for each in concerns] == ["no_backups"]
        (tmp_path / "backups").mkdir(exist_ok=True)
        made = tmp_path / "backups" / "annotate-20260101-000000.db"
        made.write_bytes(b"x")
        facts = dataclasses.replace(facts, is_up=False, backup_dir=tmp_path / "backups")
        now = round(made.stat().st_mtime * 1000) + 5 * health.HOUR_MS
        db.now = lambda: now
        concerns, _ = health.health(db, facts)
        assert [(each.key, each.values) for each in concerns] == [("down", {}), ("old_backup", {"hours": 5})]
        turn = db.value("SELECT id FROM turns")
        dialogues.fail_turn(db, turn, "MODEL_SLOW")
        concerns, tables = health.health(db, facts)
        assert concerns[-1].key == "failed"
        assert table(tables, "failures") == {"error.MODEL_SLOW": 1}
        assignment = db.value("SELECT assignment_id FROM answers")
        db.execute("INSERT INTO erasures VALUES ('x', 'all', 'running', 0, 'test')")  # opens the triggers' door
        db.execute("UPDATE answers SET received_at = ?, client_submitted_at = ? WHERE assignment_id = ?", now, now - 150_000, assignment)
        found = table(health.health(db, facts)[1], "work")
        assert (found["admin.row.waited"], found["admin.row.waited_longest"]) == (1, "2 min")
        async with site.person("admin") as admin:
            page = (await admin.get("/admin/health")).text
            assert words("admin.warn.failed", count=1) in page
            assert (await admin.get("/admin/health?csv=storage")).text.startswith("measure,value\n")
    assert [health.size(each) for each in (12, 1536, 3 << 30)] == ["12 B", "1.5 KiB", "3.0 GiB"]


async def test_a_backup_is_made_when_somebody_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the hourly ones, and in the log; where none can be made, a sentence says so."""
    monkeypatch.setattr("polyhead.client.annotate.web.app.keep_backup", lambda reader, folder: None)  # the hourly one
    words, folder = catalog("en"), tmp_path / "backups"
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE, backup_dir=folder) as site, site.person("admin") as admin:
        assert words("admin.back_up") in (await admin.get("/admin/health")).text
        await admin.form("/admin/backup")
        [made] = folder.glob("*.db")
        assert site.db.value("SELECT json_extract(body_json, '$.name') FROM events WHERE kind = 'backups.made'") == made.name
        monkeypatch.setattr("polyhead.client.annotate.web.admin.health.keep_backup", full_disk)
        assert words("error.BACKUP_FAILED") in (await admin.form("/admin/backup", 409)).text
        site.app._app.state.site.backup_dir = None
        assert words("error.NO_BACKUPS") in (await admin.form("/admin/backup", 409)).text
        assert words("admin.back_up") not in (await admin.get("/admin/health")).text


def full_disk(reader: Database, folder: Path) -> None:
    raise OSError(28, "No space left on device")


@contextlib.asynccontextmanager
async def ranked(path: Path, *ranks: tuple[int, int, int]) -> AsyncIterator[tuple[RunningSite, str]]:
    """(site, item) with one item that so many people have ranked."""
    async with running(path / "a.db", FakeModel(), RANK) as site:
        (path / "items.jsonl").write_text(json.dumps({"prompt": "x", "replies": list("abc")}), encoding="utf-8")
        import_items(site.db, projects.open_project(site.db, "work"), path / "items.jsonl", "test")
        for number, each in enumerate(ranks):
            async with site.person(pseudonym=f"amber-fox-{number}") as person:
                state = (await person.claim("work"))["state"]
                cards = sorted(state["view"]["candidates"], key=lambda card: str(card["text"]))
                body = {"ranks": {card["id"]: rank for card, rank in zip(cards, each, strict=True)}}
                await person.answer(state["assignment"]["id"], None, body)
        yield site, str(site.db.value("SELECT id FROM items"))


async def test_an_adjudicator_answers_before_seeing_the_others(tmp_path: Path) -> None:
    """Both answers are stored. The others' pseudonyms and answers come after the first one; no other page is open to the role."""
    async with ranked(tmp_path, (1, 2, 3), (2, 1, 3)) as (site, item), site.person("adjudicator") as judge:
        assert (await judge.get("/", 303)).headers["location"] == "/admin/review"
        assert f"/admin/items/{item}" in (await judge.get("/admin/p/work/disputes")).text
        before = (await judge.get(f"/admin/items/{item}")).text
        assert "amber-fox" not in before
        cards = re.findall(r'name="rank-(\w+)"', before)
        await judge.form(f"/admin/items/{item}", 422, first="1", **{f"rank-{cards[0]}": "1"})
        await judge.form(f"/admin/items/{item}", first="1", **{f"rank-{card}": str(rank) for rank, card in enumerate(cards, 1)})
        assert "amber-fox-1" in (await judge.get(f"/admin/items/{item}")).text
        await judge.form(f"/admin/items/{item}", 409, first="1", **{f"rank-{card}": "1" for card in cards})
        changed = {f"rank-{card}": str(rank) for rank, card in enumerate(reversed(cards), 1)}
        await judge.form(f"/admin/items/{item}", first="0", comment="b is shorter", **changed)
        [row] = site.db.all("SELECT * FROM adjudications")
    assert row.json("first_body")["ranks"] == {card: rank for rank, card in enumerate(cards, 1)}
    assert row.json("body")["ranks"] == {card: rank for rank, card in enumerate(reversed(cards), 1)}
    assert row.json("body")["comment"] == "b is shorter"


async def test_an_adjudicator_rates_and_then_ranks(tmp_path: Path) -> None:
    """Where people do both; the evidence that they saw stands beside it, its markup as text."""
    config = RANK.replace("kind: rank", "kind: rate") + "\nanswer: {then_rank: true}"
    evidence = {"title": "<script>alert(1)</script>", "url": "https://example.org/x"}
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person("adjudicator") as judge:
        item = {"prompt": "x", "evidence": evidence, "replies": ["a", {"text": "b", "evidence": {"snippet": "cited"}}]}
        (tmp_path / "items.jsonl").write_text(json.dumps(item), encoding="utf-8")
        import_items(site.db, projects.open_project(site.db, "work"), tmp_path / "items.jsonl", "test")
        for overall in (2, 6):
            async with site.person() as person:
                state = (await person.claim("work"))["state"]
                cards = [card["id"] for card in state["view"]["candidates"]]
                ratings = {card: {"overall": overall} for card in cards}
                body = {"ratings": ratings, "ranks": {card: rank for rank, card in enumerate(cards, 1)}}
                await person.answer(state["assignment"]["id"], None, body)
        key = str(site.db.value("SELECT id FROM items"))
        page = (await judge.get(f"/admin/items/{key}")).text
        assert "<script>alert" not in page
        assert all(each in page for each in ("&lt;script&gt;alert", "example.org", "cited"))
        given = {f"rate-{card}": "5" for card in cards}
        await judge.form(f"/admin/items/{key}", 422, first="1", **given)
        await judge.form(f"/admin/items/{key}", first="1", **given, **{f"rank-{card}": str(2 * n) for n, card in enumerate(cards, 1)})
        assert "(1.)" in (await judge.get(f"/admin/items/{key}")).text
        body = site.db.all("SELECT * FROM adjudications")[0].json("body")
    assert body["ranks"] == {card: rank for rank, card in enumerate(cards, 1)}
    assert [rating["overall"] for rating in body["ratings"].values()] == [5, 5]


async def test_what_people_agree_about_is_no_dispute(tmp_path: Path) -> None:
    async with ranked(tmp_path, (1, 2, 2), (1, 2, 2)) as (site, item), site.person("admin") as admin:
        assert item not in (await admin.get("/admin/p/work/disputes")).text
        found = agreement.agreement(site.db, "work")
        assert table(found, "agreement")["admin.row.same_answer"] == Share(3, 3)
        assert table(found, "majority") == {"amber-fox-0": Share(3, 3), "amber-fox-1": Share(3, 3)}


@pytest.mark.parametrize("num_replies", [2, 4])
@pytest.mark.parametrize("none", [True, False])
def test_people_who_choose_at_random_do_not_agree(num_replies: int, none: bool) -> None:
    """Over two thousand items alpha and kappa were 1 / K, and their matrices of all replies took gigabytes."""
    draw, found = random.Random(num_replies + none), []
    config = read_project(RANK.replace("rank", "choose") + f"\nanswer: {{none: {str(none).lower()}}}")
    for item in range(2000):
        replies: Any = {f"{item}-{number}": SimpleNamespace(text=f"reply {number}") for number in range(num_replies)}
        for person in ("amber-fox-1", "amber-fox-2"):
            choice = draw.choice([*replies, *([None] if none else [])])
            body = {"choice": choice, "tied": [], "none_good": choice is None, "least_bad": next(iter(replies))}
            about = {"item": f"{item}", "turn": None, "annotator": person}
            found.append(Judgement(f"{item}-{person}", Kind.CHOOSE, body, "better", [], replies, f"{item}", None, [], about, config))
    tracemalloc.start()
    overall, pairs, _ = agreement.tables_of(Kind.CHOOSE, found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    row, [pair] = next(row for row in overall.rows if row[0] == tables.Word("admin.row.s")), pairs.rows
    for estimate in (row[1], pair[3]):
        assert isinstance(estimate, Estimate)
        assert estimate.value == pytest.approx(0.0, abs=0.06)
    assert peak < 32 << 20


async def test_agreement_of_choices_says_what_it_is(site: RunningSite) -> None:
    """Its chance and its source, on the page and in its file."""
    words = catalog("en")
    async with site.person("admin") as admin:
        page = (await admin.get("/admin/p/helpful/agreement")).text
        assert "1 in K" in page
        assert "Brennan and Prediger 1981" in page
        assert "Krippendorff" not in page
        assert words("admin.row.s") in (await admin.get("/admin/p/helpful/agreement?csv=agreement")).text


async def test_live_work_and_its_replay_are_one_thing(tmp_path: Path) -> None:
    """Agreement on live work comes from turns that a second person judges: both answers belong to the turn."""
    config = CHOOSE.replace("max_turns: 3", "max_turns: 1") + "queue: {replay_share: 1.0}\n"
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as one, site.person() as other:
        await one_answer(one)
        replay: dict[str, Any] = {}
        while not replay.get("view"):  # a replay comes up half of the time
            replay = (await other.claim())["state"]
            if not replay["view"]:
                await other.post(f"/api/assignments/{replay['assignment']['id']}/skip", {"reason": "other"})
        await other.answer(replay["assignment"]["id"], None, choice(replay["view"], 0))
        found = agreement.agreement(site.db, "helpful")
        assert table(found, "agreement")["admin.row.same_answer"].total == 1
        assert {each.about["turn"] for each in all_judgements(site.db, "helpful")[0]} == {site.db.value("SELECT id FROM turns LIMIT 1")}


async def test_strengths_are_of_digests_and_bias_is_of_places(site: RunningSite) -> None:
    """Two heads with two replies each: four comparisons of a head with the other one an answer, none with itself."""
    async with site.person() as person:
        for number in range(2):
            state = (await person.claim())["state"]
            turn = await person.say(state["assignment"]["id"], "Hello there")
            view = (await person.state())["turns"][0]["view"]
            heads = {row.id: row.head_name for row in site.db.all("SELECT id, head_name FROM candidates")}
            wanted = ("policy", "canary-head")[number]
            index = next(place for place, card in enumerate(view["candidates"]) if heads[card["id"]] == wanted)
            await person.answer(state["assignment"]["id"], turn, choice(view, index))
            await person.post(f"/api/assignments/{state['assignment']['id']}/finish", {})
    found = strengths.ranking(site.db, "helpful", num=50)
    assert {each.name: round(each.value, 6) for each in found.strengths.fitted} == {"policy@313131": 0.0, "canary-head@313131": 0.0}
    assert [each.num_comparisons for each in found.strengths.fitted] == [4, 4]
    shares = next(each for each in bias.bias(site.db, "helpful") if each.name == "slots").rows
    assert sum(row[2].count for row in shares if isinstance(row[2], Share)) == 2


def test_values_do_not_depend_on_the_order_shown() -> None:
    assert values_of(Kind.COMPARE, {"scale": "hh8", "position": 2}, ["a", "b"], ["a", "b"]) == {"": 2}
    assert values_of(Kind.COMPARE, {"scale": "hh8", "position": 7}, ["a", "b"], ["b", "a"]) == {"": 2}


def test_cells_that_a_spreadsheet_would_run_are_texts() -> None:
    made = Table("x", ("person", "gold", "kappa"), [["=1+1", Share(1, 2), Estimate(-0.5, Interval(-1.0, 0.25), 30)], ["-", None, None]])
    words = catalog("en")
    assert tables.to_csv(made, words) == (
        "person,gold_count,gold_total,kappa_value,kappa_low,kappa_high,kappa_total\n'=1+1,1,2,-0.5,-1.0,0.25,30\n'-,,,,,,\n"
    )
    assert tables.shown(Share(1, 2), words).endswith("n = 2 (too few)")
    assert tables.shown(Estimate(None), words) == "not defined"
