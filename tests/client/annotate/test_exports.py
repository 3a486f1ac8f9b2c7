"""Formats of other tools, row by row, and read back by what reads them where it is installed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from polyhead.client import Rule
from polyhead.client.annotate import projects, rules
from polyhead.client.annotate.exports.judgements import Filters
from polyhead.client.annotate.exports.writing import NAMES, export
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import RunningSite, running
from tests.client.annotate.test_kinds import MESSAGES, add, claimed, rows, stored

PROBE = "slug: work\nkind: probe\narms: {fixed: [{head: policy, n: 1}]}\nrules: {rule_set: example-rules@1, attempts: 2}"
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
    """Fields are texts, and the other keys "QUESTION.response", as `records.log` maps them."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        [row] = rows(site, tmp_path / "rows.jsonl", "argilla")
    assert set(row["fields"]) == {"prompt", "reply_A", "reply_B", "reply_C"}
    assert all(isinstance(text, str) for text in row["fields"].values())
    ranks = {row["fields"][f"reply_{key[5]}"]: value for key, value in row.items() if re.fullmatch(r"rank_[ABC]\.response", key)}
    assert ranks == {"a": 1, "b": 2, "c": 1}


@pytest.mark.parametrize(("position", "side"), [(1, "left"), (8, "right")])
async def test_label_studio_tasks_and_their_interface(tmp_path: Path, position: int, side: str) -> None:
    """Every result names controls and objects of the interface, and values that it offers."""
    async with running(tmp_path / "a.db", FakeModel(), stored("compare", "answer: {strength: hh8}")) as site:
        shown = await compared(site, tmp_path / "items.jsonl", position)
        [row] = rows(site, tmp_path / "rows.jsonl", "label-studio")
    [result] = row["annotations"][0]["result"]
    assert result == {"type": "pairwise", "from_name": "best", "to_name": "reply_A,reply_B", "value": {"selected": side}}
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
        assert controls[result["from_name"]] == (result["type"], result["to_name"])
        assert set(result["to_name"].split(",")) <= set(objects)


async def test_events_are_everything_up_to_a_point(tmp_path: Path) -> None:
    """And the same file again for the same point, whatever came later."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        await ranked(site, tmp_path / "items.jsonl")
        until = site.db.value("SELECT max(seq) FROM events")
        export(site.db, "work", "events", tmp_path / "one.jsonl", Filters(0, until), "test")
        export(site.db, "work", "events", tmp_path / "two.jsonl", Filters(0, until), "test")
    found = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["seq"] for row in found] == list(range(1, until + 1))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert {"answers.insert", "items.insert", "projects.insert"} <= {row["kind"] for row in found}


def test_all_formats_of_the_guide_are_there() -> None:
    guide = (Path(__file__).resolve().parents[3] / "docs" / "guides" / "annotate.md").read_text(encoding="utf-8")
    assert [name for name in NAMES if f"`{name}`" not in guide] == []
    assert len(NAMES) == 14
