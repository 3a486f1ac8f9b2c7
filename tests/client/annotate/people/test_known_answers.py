"""What follows known answers: an explanation after training, a warning with examples, a pause until the team has looked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyhead.client.annotate.admin import people
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.web import explaining
from polyhead.client.annotate.web.catalogs import catalog
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, Person, RunningSite, running

GOLD = "slug: work\nkind: choose\nsource: stored\nqueue: {{gold_every: 1, {}}}"
KNOWN = [{"prompt": f"known {number}", "replies": ["a", "b"], "gold": {"choice": 0, "why": "a is true"}} for number in range(8)]


def add(site: RunningSite, folder: Path, items: list[dict[str, Any]]) -> None:
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)), encoding="utf-8")
    import_items(site.db, projects.open_project(site.db, "work"), folder / "items.jsonl", "test")


async def answer(person: Person, text: str) -> dict[str, Any]:
    """Chooses the reply with this text."""
    state = (await person.claim("work"))["state"]
    card = next(each for each in state["view"]["candidates"] if each["text"] == text)
    return await person.answer(state["assignment"]["id"], None, {"choice": card["id"]})


@pytest.mark.parametrize("locale", ["en", "zh-Hans"])
async def test_a_warning_shows_answers_that_differ(tmp_path: Path, locale: str) -> None:
    """Below 0.7 of known answers, once half of what a pause needs are there; afterwards work goes on. What was shown cannot be undone,
    and what the person says about it reaches the team."""
    words = catalog(locale)
    async with running(tmp_path / "a.db", FakeModel(), GOLD.format("gold_after: 6")) as site, site.person() as person:
        site.db.execute("UPDATE accounts SET locale = ?", locale)
        add(site, tmp_path, KNOWN)
        await person.get("/p/work/examples", 303)  # nothing is due
        for text in "aa":
            await answer(person, text)
        wrong = await answer(person, "b")
        assert (await person.claim("work"))["empty"] == "warned"
        assert words("done.warned") in (await person.get("/")).text
        page = (await person.get("/p/work/examples")).text
        letters = {row.text: "AB"[row.slot] for row in site.db.all(SLOTS, wrong["answer_id"])}
        shown = (words("warned.text", passed=2, total=3).replace("'", "&#39;"), "a is true")
        for each in (*shown, words("told.best", letters=letters["a"]), words("told.best", letters=letters["b"])):
            assert each in page, each
        assert (page.count("known "), "canary" in page) == (1, False)  # no more than differed
        assert (await person.post(f"/api/answers/{wrong['answer_id']}/withdraw", {}, 409))["code"] == "UNDO_OVER"
        await person.form("/p/work/examples", **{f"says-{wrong['answer_id']}": "b is true"})
        [report] = site.db.all("SELECT * FROM reports")
        assert (report.reason, report.text, report.state) == ("known_answer", "b is true", "open")
        async with site.person("admin") as admin:
            assert f'href="/admin/p/work/items/{report.item_id}"' in (await admin.get("/admin/reports")).text
        assert (await answer(person, "b"))["explained"] is None  # goes on; and two more are needed before another warning
        assert "state" in await person.claim("work")


SLOTS = """SELECT c.text, s.slot FROM answers n JOIN view_slots s ON s.view_id = n.view_id
    JOIN candidates c ON c.id = s.candidate_id WHERE n.id = ?"""


async def test_a_training_item_is_explained_afterwards(tmp_path: Path) -> None:
    """And how far the training is stands on the overview; there is no warning of it."""
    config = GOLD.format("training: 2, gold_after: 2").replace("gold_every: 1", "gold_every: 0")
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person:
        add(site, tmp_path, [{**each, "gold_kind": "training"} for each in KNOWN[:2]])
        assert catalog("en")("home.training", done=0, total=2) in (await person.get("/")).text
        told = [(await answer(person, text))["explained"] for text in "ba"]
        assert [each["is_passed"] for each in told] == [False, True]
        for each in told:
            letter = next(reply["letter"] for reply in each["replies"] if reply["text"] == "a")
            assert (each["expected"], each["why"]) == (f"Best: {letter}", "a is true")
            assert (each["own"] == each["expected"]) == each["is_passed"]
        assert (await person.claim("work"))["empty"] == "nothing_left"
        assert [each.gold for each in people.people(site.db)] == [0]  # nobody is judged by it


@pytest.mark.parametrize(
    ("more", "body", "told"),
    [
        ("kind: choose", {"none_good": True, "choice": None, "tied": []}, "None of them is good"),
        ("kind: choose\nanswer: {polarity: worse}", {"choice": "y", "tied": ["x"]}, "Most harmful: A, B"),
        ("kind: compare\nanswer: {strength: hh8}", {"scale": "hh8", "position": 5}, "B is better"),
        ("kind: compare\nanswer: {strength: stiennon9}", {"scale": "stiennon9", "position": 5}, "Equally good"),
        ("kind: rank", {"ranks": {"x": 2, "y": 1}}, "B > A"),
        ("kind: rank", {"ranks": {"x": 1, "y": 1}}, "A = B"),
        (
            "kind: rate\nanswer: {flags: [hallucination, dull], flag_texts: {dull: {en: Dull}}}",
            {"ratings": {"y": {"overall": 2, "flags": {}}, "x": {"overall": 6, "flags": {"dull": True, "hallucination": False}}}},
            "A: 6 (Dull: Yes, Contains made-up facts: No); B: 2",
        ),
        ("kind: rulecheck\nrules: {rule_set: r@1}", {"verdict": 3}, "The rule was probably broken"),
    ],
)
def test_answers_in_words(more: str, body: dict[str, Any], told: str) -> None:
    config = read_project(f"slug: work\nsource: stored\n{more}")
    assert explaining.in_words(config, body, {"x": "A", "y": "B"}, catalog("en")) == told


async def test_known_answers_pause_a_person_until_the_team_has_looked(tmp_path: Path) -> None:
    """Below the limit after so many known answers; leaving and coming back is no way out, and a lift counts anew."""
    config = GOLD.format("gold_warn: 0, gold_limit: 0.6, gold_after: 3")
    async with (
        running(tmp_path / "a.db", FakeModel(), config, CHOOSE) as site,
        site.person("admin") as admin,
        site.person(pseudonym="amber-fox-1") as person,
    ):
        add(site, tmp_path, KNOWN)
        for text in "abb":
            await answer(person, text)
        assert (await person.claim("work"))["empty"] == "gold"
        assert catalog("en")("done.gold") in (await person.get("/")).text
        for back in ("", "", "1"):  # twice: the second time nothing is paused any more
            await person.form("/p/work/leave", back=back)
        assert (await person.claim("work"))["empty"] == "gold"
        assert "state" in await person.claim("helpful")  # other projects are open
        shown = (await admin.get("/admin/people")).text
        assert catalog("en")("admin.paused_count", passed=1, total=3) in shown
        account, project = (
            site.db.value(f"SELECT {name}_id FROM qualifications WHERE state = 'paused'") for name in ("account", "project")
        )
        await admin.form(f"/admin/people/{account}/lift", project=project)
        await admin.form(f"/admin/people/{account}/lift", 404, project=project)
        for text in "bb":
            await answer(person, text)  # two known answers since the lift: too few to judge by
        assert "state" in await person.claim("work")
        await answer(person, "a")
        assert (await person.claim("work"))["empty"] == "gold"
