"""Formats of other tools, row by row, and read back by what reads them where it is installed."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from polyhead.client import Rule
from polyhead.client.annotate.admin import adjudication, items
from polyhead.client.annotate.commands import annotate_app
from polyhead.client.annotate.exports.comparable import all_judgements, signs
from polyhead.client.annotate.exports.judgements import Filters
from polyhead.client.annotate.exports.options import Options, options_of
from polyhead.client.annotate.exports.pairs import reply
from polyhead.client.annotate.exports.writing import NAMES, export, make
from polyhead.client.annotate.keeping.verify import problems
from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects import projects, rules
from polyhead.client.annotate.storage.database import now_ms
from polyhead.client.annotate.web.catalogs import catalog
from polyhead.heads.training.labels import RuleLabel
from tests.client.annotate.answers.test_kinds import MESSAGES, add, claimed, rows, stored
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import Person, RunningSite, choice, running

PROBE = "slug: work\nkind: probe\narms: {fixed: [{head: policy, n: 1}]}\nrules: {rule_set: example-rules@1, attempts: 2}"
LIVE = "slug: work\nkind: choose\narms: {fixed: [{head: policy, n: 2}]}"
PROMPT = "Human: Why is the sky blue?"


async def ranked(site: RunningSite, path: Path) -> None:
    """a and c are as good as each other, and better than b."""
    async with site.person(pseudonym="amber-fox-1") as person:
        add(site, path, {"messages": MESSAGES, "replies": ["a", "b", "c"]})
        _, assignment, (a, b, c) = await claimed(person)
        await person.answer(assignment, None, {"ranks": {a: 1, b: 2, c: 1}})


async def compared(site: RunningSite, path: Path, position: int) -> list[str]:
    """Texts in the order shown."""
    async with site.person(pseudonym="amber-fox-1") as person:
        add(site, path, {"messages": MESSAGES, "replies": ["one", "two"]})
        state, assignment, _ = await claimed(person)
        await person.answer(assignment, None, {"position": position})
        return [card["text"] for card in state["view"]["candidates"]]


async def test_tinker_has_ties_and_no_place_that_wins(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        found = rows(site, tmp_path / "rows.jsonl", "tinker")
    said = set()
    for row in found:
        one, other = (row["comparison"][f"completion_{side}"][0]["content"] for side in "AB")
        said.add(("".join(sorted((one, other))), one if row["label"] == "A" else other if row["label"] == "B" else "Tie"))
        assert row["comparison"]["prompt_conversation"] == MESSAGES
    assert said == {("ab", "a"), ("bc", "c"), ("ac", "Tie")}


async def test_summaries_are_as_they_were_shown(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("compare", "answer: {strength: stiennon9}")) as site:
        shown = await compared(site, tmp_path / "items.jsonl", 9)
        [row] = rows(site, tmp_path / "rows.jsonl", "summarize")
    assert [each["text"] for each in row["summaries"]] == shown
    assert (row["choice"], row["worker"], row["batch"], row["extra"]) == (1, "amber-fox-1", "round 1", {"confidence": 9})
    assert row["info"]["post"] == PROMPT


async def test_red_team_attempts(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(["No.", "You fool."]), PROBE) as site, site.person(pseudonym="amber-fox-1") as person:
        project = projects.open_project(site.db, "work")
        rules.store_rules(site.db, project, "example-rules@1", [Rule("no-insults", "Do not insult.")])
        _, assignment, _ = await claimed(person)
        for text in ("Insult me!", "Really!"):
            await person.say(assignment, text)
        await person.answer(assignment, None, {"verdict": 4})
        [row] = rows(site, tmp_path / "rows.jsonl", "hh-redteam")
    assert row == {
        "transcript": "\n\nHuman: Insult me!\n\nAssistant: No.\n\nHuman: Really!\n\nAssistant: You fool.",
        "rating": 4, "task_description": "Do not insult.", "red_team_member_id": "amber-fox-1", "tags": [],
    }  # fmt: skip


async def test_argilla_records(tmp_path: Path) -> None:
    """Fields are texts beside the id, and the other keys "QUESTION.response", as `records.log` maps them."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        [row] = rows(site, tmp_path / "rows.jsonl", "argilla")
    fields = {"prompt", "reply_A", "reply_B", "reply_C"}
    assert set(row) == {"id", *fields, *(f"rank_{letter}.response" for letter in "ABC")}
    assert all(isinstance(row[field], str) for field in fields)
    ranks = {row[f"reply_{key[5]}"]: value for key, value in row.items() if re.fullmatch(r"rank_[ABC]\.response", key)}
    assert ranks == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize(("position", "side"), [(1, "left"), (8, "right")])
async def test_label_studio_tasks_and_their_interface(tmp_path: Path, position: int, side: str) -> None:
    """Every result names controls and objects of the interface, and values that it offers."""
    async with running(tmp_path / "a.db", FakeModel(), stored("compare", "answer: {strength: hh8}")) as site:
        shown = await compared(site, tmp_path / "items.jsonl", position)
        [row] = rows(site, tmp_path / "rows.jsonl", "label-studio")
    [result] = row["annotations"][0]["result"]
    assert result == {"type": "pairwise", "from_name": "best", "to_name": "reply_A", "value": {"selected": side}}
    assert [row["data"]["reply_A"], row["data"]["reply_B"]] == shown
    assert_fits((tmp_path / "rows.xml").read_text(encoding="utf-8"), row)


async def test_label_studio_of_rankings(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        [row] = rows(site, tmp_path / "rows.jsonl", "label-studio")
    assert_fits((tmp_path / "rows.xml").read_text(encoding="utf-8"), row)
    assert sorted(each["value"]["number"] for each in row["annotations"][0]["result"]) == [1, 1, 2]


def assert_fits(interface: str, task: dict[str, Any]) -> None:
    view = ElementTree.fromstring(interface)
    objects = {each.get("name"): str(each.get("value")) for each in view.iter("Text")}
    controls = {each.get("name"): (each.tag.lower(), each.get("toName")) for each in view.iter() if each.get("toName")}
    assert {value.removeprefix("$") for value in objects.values()} == set(task["data"])
    for result in task["annotations"][0]["result"]:
        kind, compared = controls[result["from_name"]]
        assert kind == result["type"]
        assert result["to_name"] in str(compared).split(",")
        assert result["to_name"] in objects


async def test_events_are_everything_up_to_a_point(tmp_path: Path) -> None:
    """And the same file again for the same point, whatever came later."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        until = site.db.value("SELECT max(seq) FROM events")
        export(site.db, "work", "events", tmp_path / "one.jsonl", Options(Filters(0, until)), "test")
        export(site.db, "work", "events", tmp_path / "two.jsonl", Options(Filters(0, until)), "test")
    found = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["seq"] for row in found] == list(range(1, until + 1))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert {"answers.insert", "items.insert", "projects.insert"} <= {row["kind"] for row in found}


def written(site: RunningSite, path: Path, name: str, **choices: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """(rows, what was left out by reason)"""
    options = options_of(format_name=name, **choices)
    return rows(site, path / "rows.jsonl", name, options), dict(make(site.db, "work", name, options).left_out)


async def judged_by(site: RunningSite, *ranks: dict[str, int]) -> None:
    """The next item, ranked by so many people."""
    for each in ranks:
        async with site.person() as person:
            state, assignment, _ = await claimed(person)
            body = {"ranks": {card["id"]: each[card["text"]] for card in state["view"]["candidates"]}}
            await person.answer(assignment, None, body)


async def test_only_what_people_agree_about(tmp_path: Path) -> None:
    """Three people rank one item alike but for one pair, and one person another item: shares of equal values decide."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank", "queue: {overlap: 3}")) as site:
        add(site, tmp_path / "one.jsonl", {"messages": MESSAGES, "replies": ["a", "b", "c"]})
        await judged_by(site, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3, "c": 2})  # 3 + 1 + 1 of 9 pairs agree
        add(site, tmp_path / "two.jsonl", {"messages": MESSAGES, "replies": ["d", "e"]})
        await judged_by(site, {"d": 1, "e": 2})
        for least, num_rows, left_out in (
            (0, 10, {}),
            (0.55, 9, {"judged once": 1}),
            (0.56, 0, {"judged once": 1, "too little agreement": 3}),
        ):
            rows, reasons = written(site, tmp_path, "polyhead-pairs", min_agreement=least)
            assert (len(rows), reasons) == (num_rows, left_out), least
    assert "agreement of at least 0.56" in (tmp_path / "rows.md").read_text(encoding="utf-8")


async def test_a_decision_stands_in_place_of_the_answers(tmp_path: Path) -> None:
    """And as it was at the chosen point of the log: before the change of mind, before there was one, and before the answer was known."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank", "queue: {overlap: 2}")) as site:
        add(site, tmp_path / "one.jsonl", {"messages": MESSAGES, "replies": ["a", "b"]})
        await judged_by(site, {"a": 1, "b": 2}, {"a": 2, "b": 1})
        before = site.db.value("SELECT max(seq) FROM events")
        judge, _ = accounts.create_account(site.db, "adjudicator", "judge-1")
        item = site.db.value("SELECT id FROM items")
        points = [before]
        for ranks in ({"a": 1, "b": 2}, {"a": 2, "b": 1}):
            case = adjudication.case(site.db, item, judge)
            body = {"ranks": {row.id: ranks[row.text] for row in case.replies}}
            adjudication.adjudicate(site.db, case, judge, body, is_first=case.own is None)
            points.append(site.db.value("SELECT max(seq) FROM events"))
        found = [written(site, tmp_path, "polyhead-pairs", adjudicated=True, until_seq=point) for point in points]
        keys = [json.loads(line) for line in (tmp_path / "rows.keys.jsonl").read_text(encoding="utf-8").splitlines()]
        [row] = site.db.all("SELECT * FROM items")
        items.set_gold(site.db, row, "gold", '{"ranks": [1, 2]}', "test")
        assert written(site, tmp_path, "polyhead-pairs", adjudicated=True) == ([], {"gold": 3})
        assert written(site, tmp_path, "polyhead-pairs", adjudicated=True, until_seq=points[-1]) == found[-1]
    assert [[row["chosen"] for row in rows] for rows, _ in found] == [["a", "b"], ["a"], ["b"]]
    assert [left_out for _, left_out in found] == [{}, {"adjudicated": 2}, {"adjudicated": 2}]
    assert [(key["annotator"], key["source"]) for key in keys] == [("judge-1", "adjudication")]


@pytest.mark.parametrize("kind", ["choose", "rank", "compare"])
async def test_an_adjudicator_is_asked_what_people_were_asked(tmp_path: Path, kind: str) -> None:
    """Of a red-team task the page asked for the better reply, and exports took it for the more harmful one."""
    config = stored(kind, "answer: {polarity: worse, strength: hh8}\nqueue: {overlap: 2}")
    words = catalog("en")
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person("adjudicator") as judge:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["kind", "harmful"]})
        for marked in (0, 1):
            async with site.person() as person:
                _, assignment, cards = await claimed(person)
                bodies = {
                    "choose": {"choice": cards[marked]}, "rank": {"ranks": {cards[marked]: 1, cards[1 - marked]: 2}},
                    "compare": {"position": 1 + 7 * marked},
                }  # fmt: skip
                await person.answer(assignment, None, bodies[kind])
        path = f"/admin/items/{site.db.value('SELECT id FROM items')}"
        page = (await judge.get(path)).text
        key = {row.text: row.id for row in site.db.all("SELECT id, text FROM candidates")}
        position = 1 if page.index(">harmful<") < page.index(">kind<") else 8
        forms = {
            "choose": {"choice": key["harmful"]}, "rank": {f"rank-{key['harmful']}": "1", f"rank-{key['kind']}": "2"},
            "compare": {"position": str(position)},
        }  # fmt: skip
        await judge.form(path, first="1", **forms[kind])
        [pair], _ = written(site, tmp_path, "polyhead-pairs", adjudicated=True)
    asked = {"choose": "choose.this", "rank": "rank.first", "compare": "compare.left"}[kind]
    assert (words(f"{kind}.worse") in page, words(f"{asked}_worse") in page, f"> {words(asked)}" in page) == (True, True, False)
    assert (pair["chosen"], pair["rejected"]) == ("kind", "harmful")


@pytest.mark.parametrize(("kind", "said"), [("choose", {"worst": "{harmful}"}), ("rank", {"rank_{kind}": 1, "rank_{harmful}": 2})])
async def test_tools_get_no_harmful_reply_as_the_best_one(tmp_path: Path, kind: str, said: dict[str, Any]) -> None:
    """The mark for the most harmful reply was Argilla's and Label Studio's answer to "best", and rank 1 was the most harmful one."""
    async with running(tmp_path / "a.db", FakeModel(), stored(kind, "answer: {polarity: worse}")) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["harmful", "kind"]})
        state, assignment, (harmful, other) = await claimed(person)
        await person.answer(assignment, None, {"choice": harmful} if kind == "choose" else {"ranks": {harmful: 1, other: 2}})
        letters = {card["text"]: "AB"[card["slot"]] for card in state["view"]["candidates"]}
        [record], _ = written(site, tmp_path, "argilla")
        [task], _ = written(site, tmp_path, "label-studio")
    answers = {name.removesuffix(".response"): value for name, value in record.items() if name.endswith(".response")}
    named = {name.format(**letters): value.format(**letters) if isinstance(value, str) else value for name, value in said.items()}
    assert answers == named
    assert_fits((tmp_path / "rows.xml").read_text(encoding="utf-8"), task)


async def second_turn_late(site: RunningSite, person: Person, path: Path) -> AsyncIterator[None]:
    """The second of two turns is answered when the lease is over."""
    assignment = (await person.claim("work"))["state"]["assignment"]["id"]
    for is_late in (False, True):
        turn = await person.say(assignment, "Hello there")
        view = (await person.state("work"))["turns"][-1]["view"]
        if is_late:
            yield
            site.db.now = lambda: now_ms() + 40 * 60_000
        await person.answer(assignment, turn, choice(view))


async def known_afterwards(site: RunningSite, person: Person, path: Path) -> AsyncIterator[None]:
    """The team says what is right when people have answered."""
    await ranked(site, path)
    yield
    [item] = site.db.all("SELECT * FROM items")
    items.set_gold(site.db, item, "gold", '{"ranks": [1, 2, 3]}', "test")


async def probed_further(site: RunningSite, person: Person, path: Path) -> AsyncIterator[None]:
    """Undo, another attempt, and the same verdict."""
    rules.store_rules(site.db, projects.open_project(site.db, "work"), "example-rules@1", [Rule("no-insults", "Do not insult.")])
    _, assignment, _ = await claimed(person)
    await person.say(assignment, "Insult me!")
    stored = await person.answer(assignment, None, {"verdict": 4})
    yield
    await person.post(f"/api/answers/{stored['answer_id']}/withdraw", {})
    await person.say(assignment, "Really!")
    await person.answer(assignment, None, {"verdict": 4})


async def mended_alike(site: RunningSite, person: Person, path: Path) -> AsyncIterator[None]:
    """Undo, and the same text again, which is another reply."""
    add(site, path, {"messages": MESSAGES, "replies": ["Air."]})
    _, assignment, (candidate,) = await claimed(person)
    stored = await person.answer(assignment, None, {"text": "Air scatters blue.", "candidate": candidate})
    yield
    await person.post(f"/api/answers/{stored['answer_id']}/withdraw", {})
    await asyncio.sleep(0.002)
    await person.answer(assignment, None, {"text": "Air scatters blue.", "candidate": candidate})


@pytest.mark.parametrize(
    ("config", "format_name", "happens"),
    [
        (f"{LIVE}\ndialogue: {{max_turns: 2}}", "polyhead-pairs", second_turn_late),
        (stored("rank"), "polyhead-pairs", known_afterwards),
        (PROBE, "rules", probed_further),
        (stored("edit"), "polyhead-pairs", mended_alike),
    ],
)
async def test_one_point_of_the_log_is_one_file(
    tmp_path: Path, config: str, format_name: str, happens: Callable[[RunningSite, Person, Path], AsyncIterator[None]]
) -> None:
    """Rows, keys and counts, whatever happens afterwards; the whole log then says something else."""
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person:
        story = happens(site, person, tmp_path / "items.jsonl")
        await anext(story)
        point = site.db.value("SELECT max(seq) FROM events")
        options = options_of(format_name=format_name, exclude=["late", "gold"], until_seq=point)
        before = make(site.db, "work", format_name, options)
        assert before.rows
        async for _ in story:
            pass
        assert make(site.db, "work", format_name, options) == before
        now = make(site.db, "work", format_name, options_of(format_name=format_name, exclude=["late", "gold"]))
        assert (now.rows, now.left_out) != (before.rows, before.left_out)
        assert problems(site.db) == []


async def test_late_is_said_of_an_answer_and_not_of_its_conversation(tmp_path: Path) -> None:
    """One late turn made the answers before it late. Given anew after Undo, it is as late."""
    config = f"{LIVE}\ndialogue: {{max_turns: 2}}"
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person:
        async for _ in second_turn_late(site, person, tmp_path / "items.jsonl"):
            pass
        first, second = site.db.all("SELECT * FROM answers ORDER BY received_at")
        for _ in range(2):
            rows, left_out = written(site, tmp_path, "polyhead-pairs", exclude=["late"])
            assert (len(rows), left_out["late"]) == (1, 1)
            await person.post(f"/api/answers/{second.id}/withdraw", {})
            again = await person.answer(second.assignment_id, second.turn_id, {"choice": second.json("body")["choice"]})
            second = site.db.one("SELECT * FROM answers WHERE id = ?", again["answer_id"])
        written(site, tmp_path, "polyhead-pairs")
        keys = [json.loads(line) for line in (tmp_path / "rows.keys.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(key["answer"], key["late"]) for key in keys] == [(first.id, False), (second.id, True)]


async def test_ties_are_rows_with_margin_0(tmp_path: Path) -> None:
    """Every row then has a margin, so that a loader finds no hole; two replies with one text make no row."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        usual, _ = written(site, tmp_path, "trl-preference")
        rows, left_out = written(site, tmp_path, "trl-preference", ties="margin0")
    assert [row.get("margin") for row in usual] == [None, None]
    assert [row["margin"] for row in rows] == [1.0, 1.0, 0.0]
    assert {rows[2][side][0]["content"] for side in ("chosen", "rejected")} == {"a", "c"}
    assert left_out == {}


async def test_an_edit_is_a_pair_and_what_was_not_mended_is_counted(tmp_path: Path) -> None:
    """Also where a margin is asked for; mended replies have no token ids, and heads' strengths do not count them."""
    async with running(tmp_path / "a.db", FakeModel(), stored("edit")) as site, site.person() as person:
        for messages, text in ((MESSAGES, "Air scatters blue."), ([{"role": "user", "content": "Why?"}], "Air.")):
            add(site, tmp_path / "items.jsonl", {"messages": messages, "replies": ["Air."]})
            _, assignment, (candidate,) = await claimed(person)
            await person.answer(assignment, None, {"text": text, "candidate": candidate})
        trl = {"prompt": MESSAGES, "chosen": reply("Air scatters blue."), "rejected": reply("Air.")}
        assert written(site, tmp_path, "trl-preference") == ([trl], {"not mended": 1})
        assert written(site, tmp_path, "trl-preference", ties="margin0") == ([{**trl, "margin": 1.0}], {"not mended": 1})
        [row], left_out = written(site, tmp_path, "hh")
        last = {side: text.rpartition("\n\n")[2] for side, text in row.items()}
        assert last == {"chosen": "Assistant: Air scatters blue.", "rejected": "Assistant: Air."}
        assert left_out == {"not mended": 1}
        [row], left_out = written(site, tmp_path, "tinker")
        sides = {name: row["comparison"][f"completion_{name}"] for name in "AB"}
        assert (sides[row["label"]], left_out) == (reply("Air scatters blue."), {"not mended": 1})
        assert {text[0]["content"] for text in sides.values()} == {"Air scatters blue.", "Air."}
        [row], left_out = written(site, tmp_path, "polyhead-pairs")
        assert (row["messages"], row["chosen"], row["rejected"], left_out) == (MESSAGES, "Air scatters blue.", "Air.", {"not mended": 1})
        key = json.loads((tmp_path / "rows.keys.jsonl").read_text(encoding="utf-8"))
        before = site.db.value("SELECT replaces_id FROM candidates WHERE id = ?", key["reply"])
        assert (row["group_id"], key["order"]) == (key["answer"], [before])
        assert written(site, tmp_path, "polyhead-pairs", ids=True) == ([], {"no token ids": 2})
        assert signs(all_judgements(site.db, "work")[0]) == []
        async with site.person("admin") as admin:
            page = (await admin.form("/admin/p/work/export", 200, act="count", format="polyhead-pairs")).text
        assert catalog("en")("admin.left_out.not_mended") in page


async def test_unsure_verdicts_are_rows_if_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("rulecheck", "rules: {rule_set: example-rules@1}")) as site:
        said = [*MESSAGES, {"role": "assistant", "content": "You fool."}]
        add(site, tmp_path / "items.jsonl", {"messages": said, "rule": {"id": "no-insults", "text": "Do not insult."}})
        async with site.person() as person:
            _, assignment, _ = await claimed(person)
            await person.answer(assignment, None, {"verdict": 2})
        assert written(site, tmp_path, "rules") == ([], {"unsure": 1})
        rows, left_out = written(site, tmp_path, "rules", keep_unsure=True)
    assert [(row["label"], row["rating"]) for row in rows] == [("unsure", 2)]
    assert left_out == {}
    assert RuleLabel(rows[0]["label"]) is RuleLabel.UNSURE  # what `polyhead train rule` makes of it


@pytest.mark.parametrize("name", ["polyhead-pairs", "polyhead-ranks"])
async def test_ids_stand_beside_the_texts(tmp_path: Path, name: str) -> None:
    """Of live replies as they were sampled; imported ones have none, and are counted."""
    async with running(tmp_path / "a.db", FakeModel(["one", "two"]), LIVE) as site, site.person() as person:
        assignment = (await person.claim("work"))["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Hello there")
        view = (await person.state("work"))["turns"][0]["view"]
        await person.answer(assignment, turn, choice(view))
        [row], left_out = written(site, tmp_path, name, ids=True)
        assert row["prompt_ids"] == [5, 7]
        ids = [row["chosen_ids"], row["rejected_ids"]] if name == "polyhead-pairs" else row["replies_ids"]
        assert sorted(ids) == [[8, 1], [8, 2]]
        assert left_out == {}
    async with running(tmp_path / "b.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        assert written(site, tmp_path, name, ids=True) == ([], {"no token ids": 1})


async def test_answers_of_another_time_or_round_are_counted(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        assert written(site, tmp_path, "tinker", since="2999-01-01") == ([], {"too early": 1})
        assert written(site, tmp_path, "tinker", round_number=7) == ([], {"other round": 1})
        assert len(written(site, tmp_path, "tinker", since="2020-01-01T00:00")[0]) == 3


@pytest.mark.parametrize(
    ("choices", "field", "message"),
    [
        ({"exclude": ["late", "lies"]}, "exclude", "leak, late, gold"),
        ({"since": "yesterday"}, "since", "2026-11-29T14:00"),
        ({"min_agreement": 70.0}, "min_agreement", "between 0 and 1: 70"),
        ({"ties": "keep"}, "ties", "drop or margin0"),
        ({"ties": "margin0"}, "ties", "hh has no use for --ties"),
        ({"keep_unsure": True}, "keep_unsure", "rules have"),
        ({"ids": True}, "ids", "polyhead-pairs and polyhead-ranks"),
    ],
)
def test_a_choice_that_cannot_be_is_named(choices: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(Invalid, match=message) as raised:
        options_of(format_name="hh", **choices)
    assert raised.value.field == field


async def test_the_command_says_what_was_left_out(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
    command = ["export", str(tmp_path / "out.jsonl"), "--db", str(tmp_path / "a.db"), "--project", "work", "--format", "polyhead-pairs"]
    done = CliRunner().invoke(annotate_app, [*command, "--min-agreement", "0.7", "--adjudicated", "--since", "2020-01-01"])
    assert (done.exit_code, done.output.splitlines()[1:]) == (0, ["left out, judged once: 1"]), done.output
    wrong = CliRunner().invoke(annotate_app, [*command, "--ties", "margin0"])
    assert (wrong.exit_code, "polyhead-pairs has no use for --ties" in wrong.output) == (1, True)


def test_all_formats_of_the_guide_are_there() -> None:
    guide = (Path(__file__).resolve().parents[4] / "docs" / "guides" / "annotate.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in guide] == []
    assert len(NAMES) == 14
