"""Choose the best of K, from the invite to the trainer's file, over HTTP on a scripted model."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from polyhead.client import Continuation, errors
from polyhead.client.annotate.exports.options import Options
from polyhead.client.annotate.exports.writing import export
from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.replies.candidates import unpack_ids
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, Person, RunningSite, choice, ids, running


async def test_from_an_invite_to_a_stored_answer(site: RunningSite, tmp_path: Path) -> None:
    """Invite, code, consent, message, four replies, choice, next turn on the chosen one's ids, finish, export."""
    token = accounts.create_invite(site.db)
    async with site.visitor() as person:
        names = (await person.get(f"/i/{token}")).text
        await person.get(f"/i/{token}")  # looking spends nothing
        name = names.split('name="pseudonym" value="')[1].split('"')[0]
        assert name in (await person.form(f"/i/{token}", 200, pseudonym=name, locale="en", languages="en")).text
        assert (await person.get("/", 303)).headers["location"] == "/consent"
        await person.form("/consent", stored="1", stop="1")
        assert "Helpful replies" in (await person.get("/")).text
        assert "meta name=" in (await person.get("/p/helpful/task")).text

        state = (await person.claim())["state"]
        assert state["phase"] == "compose"
        first = await person.say(state["assignment"]["id"], "Why is the sky blue?")
        view = (await person.state())["turns"][0]["view"]
        assert [card["letters"] for card in view["candidates"]] == [["A"], ["B"], ["C"], ["D"]]
        chosen = view["candidates"][2]
        result = await person.answer(state["assignment"]["id"], first, choice(view, 2, reasons=["too-long"], comment="fine"))
        assert result["next"] == "turn"
        assert result["state"]["turns"][0]["next"] == chosen["id"]
        assert site.db.value("SELECT count(*) FROM answers") == 1

        await person.say(state["assignment"]["id"], "And at dusk?")
        row = site.db.one("SELECT * FROM candidates WHERE id = ?", chosen["id"])
        assert row is not None
        following = ({"role": "user", "content": "And at dusk?"},)
        expected = Continuation(unpack_ids(row.prompt_token_ids), unpack_ids(row.token_ids), following)
        assert site.model.calls[-1]["prompt"] == expected
        turn = (await person.state())["turns"][1]
        await person.answer(state["assignment"]["id"], turn["id"], {"none_good": True, "least_bad": ids(turn["view"])[0]})
        await person.post(f"/api/assignments/{state['assignment']['id']}/finish", {})
        assert (await person.claim())["state"]["turns"] == []  # a new dialogue
    await assert_replays_by_its_row(site)
    written = export(site.db, "helpful", "trl-preference", tmp_path / "rows.jsonl", Options(), "test")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert written.num_rows == len(rows) == 6
    assert rows[0]["chosen"] == [{"role": "assistant", "content": chosen["text"]}]
    assert rows[3]["prompt"][1] == {"role": "assistant", "content": chosen["text"]}


async def assert_replays_by_its_row(site: RunningSite) -> None:
    """Head with version, seed, sampling and ids: all that draws a reply again stands in its row."""
    for row in site.db.all("SELECT * FROM candidates"):
        assert (row.head_version, row.trunk_id, row.generation) == (site.model.version, "canary-trunk", 424242)
        assert unpack_ids(row.prompt_token_ids)
        assert int(row.sample_seed) > 990000
        assert row.json("sampling")["temperature"] == 0.5


async def test_a_repeated_answer_is_the_same_answer(site: RunningSite) -> None:
    async with site.person() as person:
        assignment, turn, view = await one_turn(person)
        first = await person.answer(assignment, turn, choice(view), submission="once-0123456789ab")
        again = await person.answer(assignment, turn, choice(view), submission="once-0123456789ab")
        assert first["answer_id"] == again["answer_id"]
        assert (await person.answer(assignment, turn, choice(view, 1), 409, submission="once-0123456789ab"))["code"] == "OTHER_BODY"
        assert (await person.answer(assignment, turn, choice(view, 1), 409))["code"] == "ALREADY_ANSWERED"
    assert site.db.value("SELECT count(*) FROM answers") == 1


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body.choice"),
        ({"choice": "0" * 24}, "body.choice"),
        ({"none_good": True}, "body.least_bad"),
        ({"choice": 0, "none_good": True, "least_bad": 1}, "body.none_good"),
        ({"choice": 0, "tied": [0]}, "body.tied"),
        ({"choice": 0, "strength": 3}, "body.strength"),
        ({"choice": 0, "reasons": ["made-up"]}, "body.reasons"),
        ({"choice": 0, "other": 1}, "body.other"),
        ({"choice": 0, "comment": "\0"}, "body.comment"),
        ({"choice": 0, "comment": "\ud800"}, ""),
        ("text", "body"),
    ],
)
async def test_a_wrong_answer_names_its_field(site: RunningSite, body: object, field: str) -> None:
    """Numbers stand for the cards."""
    async with site.person() as person:
        assignment, turn, view = await one_turn(person)
        if isinstance(body, dict):
            cards = {key: ids(view)[value] for key, value in body.items() if type(value) is int and key in ("choice", "least_bad")}
            body = {**body, **cards} | ({"tied": [ids(view)[index] for index in body["tied"]]} if "tied" in body else {})
        refused = await person.answer(assignment, turn, body, 422)
        assert refused["field"] == field
    assert site.db.value("SELECT count(*) FROM answers") == 0


async def test_replies_with_one_text_are_one_card_and_a_tie(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(["same", "same", "third", "fourth"]), CHOOSE) as site, site.person() as person:
        assignment, turn, view = await one_turn(person)
        shared = next(card for card in view["candidates"] if card["text"] == "same")
        assert len(view["candidates"]) == 3
        assert len(shared["letters"]) == 2
        await person.answer(assignment, turn, {"choice": shared["id"]})
        stored = site.db.one("SELECT * FROM answers")
        assert stored is not None
        assert len(stored.json("body")["tied"]) == 1
        written = export(site.db, "helpful", "polyhead-pairs", tmp_path / "rows.jsonl", Options(), "test")
        assert written.num_rows == 4  # two equal ones before two others


async def test_a_reply_that_fails_is_drawn_again(site: RunningSite) -> None:
    """From the same head and version, with the other three kept: there are never three cards."""
    site.model.broken[3] = 1
    async with site.person() as person:
        await one_turn(person)
    assert len(site.model.calls) == 2
    assert [(arm.head, arm.n) for arm in site.model.calls[1]["arms"]] == [(f"canary-head@{site.model.version}", 1)]
    assert site.db.value("SELECT count(*) FROM candidates") == 4


async def test_a_turn_fails_after_three_draws_and_can_be_tried_again(site: RunningSite) -> None:
    site.model.broken.update({3: 1, 0: 2})
    async with site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello"}, 202)
        site.model.broken[0] = 5
        assert (await person.events(begun["turn_id"]))[-1] == ("failed", {"code": "MODEL_FAILED"})
        assert (await person.state())["phase"] == "failed"
        site.model.broken.clear()
        again = await person.post(f"/api/turns/{begun['turn_id']}/retry", {}, 202)
        assert (await person.events(again["turn_id"]))[-1][0] == "ready"
        turns = (await person.state())["turns"]
        assert [(turn["number"], turn["state"]) for turn in turns] == [(1, "ready")]


async def test_a_failed_turn_is_tried_again_once(site: RunningSite) -> None:
    """However many pages show it as failed, and after it is answered: one message has one current answer."""
    async with site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        site.model.failures.append(errors.Internal("incident"))
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello"}, 202)
        assert (await person.events(begun["turn_id"]))[-1][0] == "failed"
        again = await person.post(f"/api/turns/{begun['turn_id']}/retry", {}, 202)
        twice = await person.post(f"/api/turns/{begun['turn_id']}/retry", {}, 202)
        assert again["turn_id"] == twice["turn_id"] != begun["turn_id"]
        assert (await person.events(again["turn_id"]))[-1][0] == "ready"
        await person.answer(assignment, again["turn_id"], choice((await person.state())["turns"][0]["view"]))
        stale = await person.post(f"/api/turns/{begun['turn_id']}/retry", {}, 202)
        assert (stale["turn_id"], stale["state"]["turns"][0]["state"]) == (again["turn_id"], "ready")
        await person.post(f"/api/assignments/{assignment}/finish", {})
        assert (await person.post(f"/api/turns/{begun['turn_id']}/retry", {}, 202))["turn_id"] == again["turn_id"]
    assert site.db.value("SELECT count(*) FROM turns") == 2


async def test_a_failed_turn_that_could_not_be_marked_is_tried_again(site: RunningSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process held the database, or the disk was full: the page is told, and the next try begins it anew."""
    async with site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        site.model.failures.append(errors.Internal("incident"))
        with monkeypatch.context() as patched:
            patched.setattr("polyhead.client.annotate.replies.dialogues.fail_turn", _locked)
            begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello"}, 202)
            assert (await person.events(begun["turn_id"]))[-1] == ("failed", {"code": "MODEL_FAILED"})
        again = await person.post(f"/api/turns/{begun['turn_id']}/retry", {}, 202)
        assert (await person.events(again["turn_id"]))[-1][0] == "ready"
    assert site.db.value("SELECT state FROM turns WHERE id = ?", begun["turn_id"]) == "abandoned"


def _locked(*given: Any) -> None:
    raise sqlite3.OperationalError("database is locked")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.NotFound("no head policy@1"), "HEAD_GONE"),
        (errors.InvalidArgument("too long", field="prompts[0]"), "CONTEXT_FULL"),
        (errors.InvalidArgument("a turn's opening", field="prompts[0].chat.messages[2].content"), "TEXT_REFUSED"),
        (errors.InvalidArgument("a turn's opening", field="prompts[0].continue_from.token_ids"), "REPLY_REFUSED"),
        (errors.Internal("incident"), "MODEL_FAILED"),
        (RuntimeError("a mistake of ours"), "MODEL_FAILED"),
    ],
)
async def test_errors_of_the_server_are_sentences(site: RunningSite, error: Exception, code: str) -> None:
    site.model.failures.append(error)
    async with site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello"}, 202)
        assert (await person.events(begun["turn_id"]))[-1] == ("failed", {"code": code})


async def test_a_full_or_silent_server_is_waited_for(site: RunningSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says so, the message is kept, and the replies come by themselves."""
    monkeypatch.setattr("polyhead.client.annotate.replies.turns.WAITS_S", (0.0,))
    site.model.failures += [errors.ResourceExhausted("full", retry_after_s=0.001), errors.Unavailable("down")]
    async with site.person() as person:
        assignment, _, view = await one_turn(person)
        assert len(view["candidates"]) == 4
        assert assignment
    assert len(site.model.calls) == 3


async def test_a_turn_outlives_its_page_and_the_program(tmp_path: Path) -> None:
    """Stopped in mid-draw and started again: the same message is drawn anew, and the person meets the same task."""
    model = FakeModel()
    model.gate.clear()
    async with running(tmp_path / "a.db", model, CHOOSE) as site, site.person(pseudonym="amber-fox-1") as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello"}, 202)
        cookies = person.http.cookies
    assert model.num_cancelled == 1
    async with running(tmp_path / "a.db", FakeModel()) as site, site.visitor() as person:
        person.http.cookies = cookies
        await person.get("/")
        state = await person.state()
        assert state["assignment"]["id"] == assignment
        assert state["turns"][0]["text"] == "Hello"
        assert (await person.events(state["turns"][0]["id"]))[-1][0] == "ready"
        states = [(row.attempt, row.state) for row in site.db.all("SELECT attempt, state FROM turns ORDER BY attempt")]
    assert states == [(1, "abandoned"), (2, "ready")]


async def test_undo_takes_an_answer_back_and_the_turn_after_it(site: RunningSite) -> None:
    async with site.person() as person:
        assignment, turn, view = await one_turn(person)
        stored = await person.answer(assignment, turn, choice(view))
        await person.say(assignment, "Next")
        taken = await person.post(f"/api/answers/{stored['answer_id']}/withdraw", {})
        assert taken["state"]["phase"] == "judge"
        assert taken["state"]["assignment"]["draft"]["answer"]["body"]["choice"] == ids(view)[0]
        stored = await person.answer(assignment, turn, choice(view, 1))
        await person.say(assignment, "Next, again")
        second = (await person.state())["turns"][1]
        await person.answer(assignment, second["id"], choice(second["view"]))
        assert (await person.post(f"/api/answers/{stored['answer_id']}/withdraw", {}, 409))["code"] == "UNDO_OVER"
    states = [row.state for row in site.db.all("SELECT state FROM answers ORDER BY received_at, rowid")]
    assert states == ["withdrawn", "current", "current"]


async def test_an_answer_that_is_taken_back_is_the_current_task(site: RunningSite) -> None:
    """Undo when the next task was claimed already: the pages claimed that one, and the answer was gone for good when its lease ended."""
    async with site.person() as person:
        assignment, turn, view = await one_turn(person)
        stored = await person.answer(assignment, turn, choice(view))
        await person.post(f"/api/assignments/{assignment}/finish", {})
        assert (await person.claim())["state"]["assignment"]["id"] != assignment
        site.db.execute("UPDATE assignments SET leased_at = leased_at - 5 * 3600000 WHERE id = ?", assignment)
        await person.post(f"/api/answers/{stored['answer_id']}/withdraw", {})
        state = (await person.claim())["state"]
        assert (state["assignment"]["id"], state["phase"]) == (assignment, "judge")
        kept = await person.post(f"/api/assignments/{assignment}/heartbeat", {"tab_id": "tab", "active_ms": 0})
        assert kept["lease_until"] > kept["now"] + 29 * 60_000


async def test_a_dialogue_goes_on_with_the_new_choice_after_failed_attempts(site: RunningSite) -> None:
    """Undo abandoned the newest attempt of the next turn alone: its failed one still held the dialogue to the old choice."""
    async with site.person() as person:
        assignment, turn, view = await one_turn(person)
        stored = await person.answer(assignment, turn, choice(view))
        site.model.failures.append(errors.Internal("incident"))
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Next"}, 202)
        assert (await person.events(begun["turn_id"]))[-1][0] == "failed"
        again = await person.post(f"/api/turns/{begun['turn_id']}/retry", {}, 202)
        assert (await person.events(again["turn_id"]))[-1][0] == "ready"
        await person.post(f"/api/answers/{stored['answer_id']}/withdraw", {})
        await person.answer(assignment, turn, choice(view, 1))
        assert (await person.state())["turns"][0]["next"] == ids(view)[1]
        second = await person.say(assignment, "Next, again")
    row = site.db.one("SELECT * FROM turns WHERE id = ?", second)
    assert row is not None
    assert row.json("messages")[1]["content"] == view["candidates"][1]["text"]


async def test_late_work_counts(site: RunningSite) -> None:
    async with site.person() as person:
        assignment, turn, view = await one_turn(person)
        site.db.execute("UPDATE assignments SET lease_until = 1")
        async with site.person() as other:
            await other.claim()  # expires the lease
        await person.answer(assignment, turn, choice(view))
    row = site.db.one("SELECT * FROM assignments WHERE id = ?", assignment)
    assert row is not None
    assert (row.state, row.late) == ("expired", 1)


async def one_turn(person: Person) -> tuple[str, str, dict[str, Any]]:
    """(assignment, turn, view) of a first message that has its replies."""
    assignment = (await person.claim())["state"]["assignment"]["id"]
    turn = await person.say(assignment, "Why is the sky blue?")
    return assignment, turn, (await person.state())["turns"][0]["view"]
