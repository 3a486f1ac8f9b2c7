"""Caps, breaks, leaving, stopping, erasing: what is promised to people is kept by the program."""

from __future__ import annotations

import asyncio
import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from polyhead.client.annotate.admin import adjudication
from polyhead.client.annotate.commands import annotate_app
from polyhead.client.annotate.exports.judgements import Filters, judgements
from polyhead.client.annotate.exports.options import options_of
from polyhead.client.annotate.exports.writing import NAMES, make
from polyhead.client.annotate.items import assignments
from polyhead.client.annotate.items.counting import Done, done_by_round
from polyhead.client.annotate.people import accounts, erasure, limits
from polyhead.client.annotate.problems import Clash, NotThere
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.projects.projects import project_of_item
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.catalogs import catalog
from tests.client.annotate.answers.test_kinds import ARMS, MESSAGES, add, claimed, stored
from tests.client.annotate.model import SECRETS, FakeModel
from tests.client.annotate.site import CHOOSE, Person, RunningSite, begin, choice, ids, running

MINUTE = 60_000
NOON = 1_790_078_400_000  # 2026-09-22, 12:00 UTC
CAPPED = CHOOSE + "queue: {daily_cap_min: 60, break_after_min: 20}\n"


class Clock:
    """The site's clock, which stands still until it is moved."""

    def __init__(self, site: RunningSite) -> None:
        self.now = NOON
        site.db.now = lambda: self.now

    def move(self, minutes: float) -> None:
        self.now += int(minutes * MINUTE)


async def work(person: Person, clock: Clock, minutes: int, project: str = "helpful") -> None:
    """One dialogue of a turn, so many active minutes long."""
    state = (await person.claim(project))["state"]
    assignment = state["assignment"]["id"]
    turn = await person.say(assignment, "My cat is called Zanzibar")
    clock.move(minutes)
    view = (await person.state(project))["turns"][0]["view"]
    sent = {
        "submission_id": f"{turn}-{minutes}",
        "assignment_id": assignment,
        "turn_id": turn,
        "body": choice(view, comment="Zanzibar purrs"),
    }
    await person.post("/api/answers", {**sent, "timing": {"active_ms": minutes * MINUTE}})
    await person.post(f"/api/assignments/{assignment}/finish", {})


async def test_breaks_and_the_daily_cap_are_kept(tmp_path: Path) -> None:
    """A break is due after 20 minutes and may be put off once; after 60 minutes the day is over, and the next day begins anew."""
    async with running(tmp_path / "a.db", FakeModel(), CAPPED) as site, site.person() as person:
        clock = Clock(site)
        await work(person, clock, 20)
        assert catalog("en")("home.cap", minutes=20, cap=60) in (await person.get("/")).text
        due = await person.claim()
        assert (due["empty"], due["can_skip"], due["until"]) == ("break", True, clock.now + limits.BREAK_MS)
        await person.post("/api/breaks", {"project": "helpful"})
        await work(person, clock, 20)
        due = await person.claim()
        assert (due["empty"], due["can_skip"]) == ("break", False)
        assert (await person.post("/api/breaks", {"project": "helpful"}, 409))["code"] == "BREAK_DUE"
        clock.move(5)
        await work(person, clock, 20)
        assert (await person.claim())["empty"] == "cap"
        clock.move(11 * 60)  # past midnight
        assert "state" in await person.claim()


async def test_limits_do_not_interrupt_an_open_item(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), CAPPED) as site, site.person() as person:
        clock = Clock(site)
        assignment = (await person.claim())["state"]["assignment"]["id"]
        for _ in range(3):
            clock.move(25)
            beat = {"tab_id": "tab", "active_ms": 65 * MINUTE}
            await person.post(f"/api/assignments/{assignment}/heartbeat", beat)
        assert (await person.claim())["state"]["assignment"]["id"] == assignment


def test_sensitive_projects_have_tighter_limits() -> None:
    calm, hard = (read_project(CHOOSE + f"sensitive: {value}\n") for value in ("false", "true"))
    assert (limits.cap_ms(calm), limits.break_after_ms(calm)) == (240 * MINUTE, 45 * MINUTE)
    assert (limits.cap_ms(hard), limits.break_after_ms(hard)) == (120 * MINUTE, 25 * MINUTE)


async def test_disturbing_items_stop_sensitive_work_for_the_day(tmp_path: Path) -> None:
    """And no break of such a project can be skipped; other projects stay open."""
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE + "sensitive: true\n") as site, site.person() as person:
        begin(site.db, read_project(CHOOSE.replace("slug: helpful", "slug: calm")))
        clock = Clock(site)
        for _ in range(limits.DISTURBING_A_DAY):
            assignment = (await person.claim())["state"]["assignment"]["id"]
            await person.post(f"/api/assignments/{assignment}/skip", {"reason": "disturbing"})
        assert (await person.claim())["empty"] == "disturbing"
        await work(person, clock, 26, "calm")
        clock.move(12 * 60)
        await work(person, clock, 26)
        due = await person.claim()
        assert (due["empty"], due["can_skip"]) == ("break", False)


async def test_a_day_is_the_persons_own(site: RunningSite) -> None:
    clock = Clock(site)
    account, _ = accounts.create_account(site.db, "annotator", "amber-fox-1", timezone="Asia/Shanghai")
    assert clock.now - limits.day_start(site.db, account) == 20 * 60 * MINUTE  # 20:00 there
    assert str(limits.zone_of("Nowhere/City")) == str(limits.zone_of("../etc/passwd")) == "UTC"


async def test_somebody_leaves_a_project_and_comes_back(site: RunningSite) -> None:
    async with site.person() as person:
        await person.claim()
        await person.form("/p/helpful/leave")
        assert site.db.value("SELECT state FROM assignments") == "released"
        assert (await person.claim())["empty"] == "opted_out"
        await person.form("/p/helpful/leave", back="1")
        assert "state" in await person.claim()


@pytest.mark.parametrize("past", ["keep", "void"])
async def test_somebody_stops(site: RunningSite, past: str) -> None:
    """Signed out for good; the work stays, or is voided and counted as such."""
    async with site.person(pseudonym="amber-fox-1") as person:
        await work(person, Clock(site), 1)
        await person.form("/me/stop", 422, past=past)
        await person.form("/me/stop", 200, past=past, sure="1")
        await person.get("/", 303)
    left_out: Counter[str] = Counter()
    assert len(list(judgements(site.db, "helpful", Filters(), left_out))) == (past == "keep")
    assert left_out == ({} if past == "keep" else {"voided": 1})
    assert site.db.value("SELECT code_sha256 FROM accounts WHERE state = 'withdrawn'") is None
    assert site.db.value("SELECT count(*) FROM consents WHERE withdrawn_at IS NULL") == 0


@pytest.mark.parametrize("act", ["keep", "void", "identity", "all"])
async def test_what_counts_no_more_is_judged_by_somebody_else(tmp_path: Path, act: str) -> None:
    """An item whose only answer was voided or erased passed for done, and was handed to nobody."""
    async with running(tmp_path / "a.db", FakeModel(), stored("choose")) as site, site.person() as other:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["one", "two"]})
        async with site.person(pseudonym="amber-fox-1") as person:
            _, assignment, cards = await claimed(person)
            await person.answer(assignment, None, {"choice": cards[0]})
        account, is_kept = erasure.find(site.db, "amber-fox-1").id, act in ("keep", "identity")
        if act in erasure.MODES:
            erasure.erase(site.db, account, act, "test")
        else:
            erasure.stop(site.db, account, keeps_work=is_kept)
        assert list(done_by_round(site.db).values()) == [Done(int(is_kept), 1)]
        assert (await other.claim("work")).get("empty") == ("nothing_left" if is_kept else None)


def bytes_of(path: Path) -> bytes:
    """The file, its write-ahead log and all that lies beside it under its name."""
    return b"".join(each.read_bytes() for each in path.parent.glob(f"{path.name}*"))


@pytest.mark.parametrize("mode", erasure.MODES)
async def test_what_is_erased_is_nowhere(tmp_path: Path, mode: str) -> None:
    """Words, pseudonym and sign-in are gone from the file, its log and its free pages; another person's are not; counts stay."""
    path = tmp_path / "a.db"
    async with running(path, FakeModel(), CHOOSE + "queue: {replay_share: 1.0}\n") as site:
        clock = Clock(site)
        async with (
            site.person(pseudonym="amber-fox-1") as person,
            site.person(pseudonym="teal-owl-2") as other,
            site.person("admin") as admin,
        ):
            await work(person, clock, 1)
            state = (await person.claim())["state"]
            await person.post(
                f"/api/assignments/{state['assignment']['id']}/draft", {"rev": 0, "draft": {"text": "Zanzibar"}}, method="PUT"
            )
            await person.post(f"/api/assignments/{state['assignment']['id']}/skip", {"reason": "other", "text": "Zanzibar"})
            assignment = (await person.claim())["state"]["assignment"]["id"]
            await person.post("/api/reports", {"assignment_id": assignment, "text": "Zanzibar"})
            await person.say(assignment, "Zanzibar again")
            account = site.db.value("SELECT id FROM accounts WHERE pseudonym = 'amber-fox-1'")
            await admin.form(f"/admin/people/{account}/erase", 422, mode=mode)
            await admin.form(f"/admin/people/{account}/erase", mode=mode, sure="1")
            await person.get("/", 303)
            await other.claim()
            for name in ("progress", "agreement", "strength", "disputes"):
                await admin.get(f"/admin/p/helpful/{name}")
        site.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        found = bytes_of(path)
        assert b"amber-fox-1" not in found
        assert (b"Zanzibar" in found) == (mode == "identity")
        assert b"teal-owl-2" in found
        left_out: Counter[str] = Counter()
        assert len(list(judgements(site.db, "helpful", Filters(), left_out))) + left_out["erased"] == 1
        assert site.db.value("SELECT count(*) FROM candidates WHERE prompt_token_ids IS NULL") == (8 if mode == "all" else 0)
        with pytest.raises(Exception, match="append-only"):
            site.db.execute("UPDATE events SET body_json = '{}'")


async def replies_begin(site: RunningSite, person: Person, folder: Path) -> None:
    """The model draws the replies to a message that the person wrote."""
    assignment = (await person.claim("work"))["state"]["assignment"]["id"]
    site.model.gate.clear()
    await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "I am Zanzibar"}, 202)


async def message_begins(site: RunningSite, person: Person, folder: Path) -> None:
    """The model draws what the user says in the second turn."""
    add(site, folder / "items.jsonl", {"messages": [{"role": "user", "content": "I am Zanzibar"}]})
    state = (await person.claim("work"))["state"]
    await person.events(state["turns"][0]["id"])
    [turn] = (await person.state("work"))["turns"]
    site.model.gate.clear()
    await person.answer(state["assignment"]["id"], turn["id"], choice(turn["view"]))


@pytest.mark.parametrize(("user", "begin_draw"), [("annotator", replies_begin), ("model", message_begins)])
async def test_what_is_drawn_while_somebody_is_erased_is_not_stored(
    tmp_path: Path, user: str, begin_draw: Callable[[RunningSite, Person, Path], Awaitable[None]]
) -> None:
    """By another process, which cannot end the draw. Prompts of the replies, or the conversation with the drawn message, brought the
    words back."""
    config = f"slug: work\nkind: choose\n{ARMS}\ndialogue: {{max_turns: 2, user: {user}}}"
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person(pseudonym="amber-fox-1") as person:
        await begin_draw(site, person, tmp_path)
        num_before = site.db.value("SELECT count(*) FROM candidates")
        [draw] = site.app._app.state.site.turns._tasks.values()
        done = CliRunner().invoke(annotate_app, ["erase", "amber-fox-1", "--mode", "all", "--yes", "--db", str(tmp_path / "a.db")])
        assert done.exit_code == 0, done.output
        site.model.gate.set()
        await asyncio.wait([draw], timeout=20)
        assert site.db.value("SELECT count(*) FROM candidates") == num_before
        assert site.db.value("SELECT count(*) FROM candidates WHERE prompt_token_ids IS NOT NULL") == 0
        assert {row.messages_json for row in site.db.all("SELECT messages_json FROM turns")} == {"[]"}
        assert site.db.value("SELECT state FROM turns ORDER BY number DESC LIMIT 1") == "abandoned"


async def test_no_turn_begins_once_the_person_is_erased(site: RunningSite) -> None:
    """The request had read its assignment before it asked the model server about the text."""
    async with site.person(pseudonym="amber-fox-1") as person:
        found = assignments.get(site.db, (await person.claim())["state"]["assignment"]["id"])
        erasure.erase(site.db, erasure.find(site.db, "amber-fox-1").id, "all", "test")
        with pytest.raises(Clash, match="voided"):
            dialogues.begin_turn(site.db, found, project_of_item(site.db, found.item_id), "ab" * 12, "My cat is called Zanzibar")


async def replay(person: Person) -> tuple[str, dict[str, Any]]:
    """(assignment, view) of a turn that somebody else has answered; every other task is new work, and skipped."""
    while not (state := (await person.claim("work"))["state"])["view"]:
        await person.post(f"/api/assignments/{state['assignment']['id']}/skip", {"reason": "other"})
    return state["assignment"]["id"], state["view"]


@pytest.mark.parametrize("kind", ["choose", "compare"])
async def test_what_others_said_about_erased_words_is_no_row(tmp_path: Path, kind: str) -> None:
    """A second person's answer about a turn was a row without a prompt, and an adjudicator's decision ended the export with an error.
    Whoever has the turn open is told that it was taken back."""
    config = f"slug: work\nkind: {kind}\n{ARMS}\ndialogue: {{max_turns: 1}}\nqueue: {{replay_share: 1.0}}\n"
    async with (
        running(tmp_path / "a.db", FakeModel(), config + "answer: {strength: hh8}" * (kind == "compare")) as site,
        site.person(pseudonym="amber-fox-1") as author,
        site.person() as second,
        site.person() as third,
    ):
        begun = (await author.claim("work"))["state"]["assignment"]["id"]
        turn = await author.say(begun, "My cat is called Zanzibar")
        first = ids((await author.state("work"))["turns"][0]["view"])
        await author.answer(begun, turn, {"choice": first[0]} if kind == "choose" else {"position": 1})
        site.db.execute("UPDATE items SET overlap = 2 WHERE source = 'replay'")
        again, view = await replay(second)
        liked_first = 1 if ids(view) == first else 8
        await second.answer(again, None, {"choice": first[1]} if kind == "choose" else {"position": 9 - liked_first})
        judge, _ = accounts.create_account(site.db, "adjudicator", "judge-1")
        [dispute] = adjudication.disputed(site.db, "work")
        case = adjudication.case(site.db, dispute.item_id, judge)
        decision = {"choice": first[1]} if kind == "choose" else {"position": 8}
        adjudication.adjudicate(site.db, case, judge, decision, is_first=True)
        unfinished, _ = await replay(third)
        formats = [name for name in NAMES if name != "events"]
        assert make(site.db, "work", "polyhead-pairs", options_of(format_name="polyhead-pairs", adjudicated=True)).rows
        erasure.erase(site.db, erasure.find(site.db, "amber-fox-1").id, "all", "test")
        for name in formats:
            for adjudicated in (False, True):
                made = make(site.db, "work", name, options_of(format_name=name, adjudicated=adjudicated))
                assert (made.rows, made.left_out) == ([], {"erased": 2 + adjudicated}), name
        assert adjudication.disputed(site.db, "work") == []
        with pytest.raises(NotThere, match="erased"):
            adjudication.case(site.db, dispute.item_id, judge)
        refused = await third.answer(unfinished, None, {"choice": first[0]} if kind == "choose" else {"position": 1}, 409)
        assert refused["code"] == "VOIDED"


async def test_an_erasure_outlives_a_restore(tmp_path: Path) -> None:
    """The list beside the database says who was erased; in an older copy of the file it is done again."""
    path = tmp_path / "a.db"
    async with running(path, FakeModel(), CHOOSE) as site, site.person(pseudonym="amber-fox-1") as person:
        await work(person, Clock(site), 1)
        site.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(path, tmp_path / "older.db")
    done = CliRunner().invoke(annotate_app, ["erase", "amber-fox-1", "--mode", "all", "--yes", "--db", str(path)])
    assert done.exit_code == 0, done.output
    older = Database.open(tmp_path / "older.db")
    assert erasure.erase_again(older, erasure.list_path(path)) == 1
    older.close()
    assert b"Zanzibar" not in (tmp_path / "older.db").read_bytes()


async def test_a_person_gets_all_of_the_own_data_and_no_secret(site: RunningSite) -> None:
    async with site.person() as person, site.person() as other:
        await work(person, Clock(site), 1)
        await work(other, Clock(site), 2)
        answer = await person.get("/me/data")
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        data: dict[str, list[dict[str, Any]]] = {name: json.loads(archive.read(name)) for name in archive.namelist()}
    assert [row["user_text"] for row in data["messages.json"]] == ["My cat is called Zanzibar"]
    assert [row["body"]["comment"] for row in data["answers.json"]] == ["Zanzibar purrs"]
    assert not [secret for secret in SECRETS if secret in json.dumps(data)]
