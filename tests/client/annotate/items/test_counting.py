"""Bars of projects: how much of an open round is done, for people and for the team."""

from __future__ import annotations

import json
from pathlib import Path

from polyhead.client.annotate.items.counting import Done, done_by_round
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.web.catalogs import catalog
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, Person, running

RANK = "slug: work\nkind: rank\nsource: stored\nqueue: {overlap: 2}"


async def answer(person: Person) -> None:
    state = (await person.claim("work"))["state"]
    ranks = {card["id"]: 1 for card in state["view"]["candidates"]}
    await person.answer(state["assignment"]["id"], None, {"ranks": ranks})


async def test_a_bar_counts_judgements_that_items_want(tmp_path: Path) -> None:
    """Two each; neither known answers, nor retired items, nor a round that is over; of conversations that people begin there is no end."""
    words = catalog("en")
    lines = [{"prompt": str(number), "replies": ["a", "b"]} for number in range(4)]
    lines[3]["gold"] = {"ranks": [1, 2]}
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE, RANK) as site, site.person() as person, site.person() as other:
        project = projects.open_project(site.db, "work")
        import_items(site.db, project, tmp_path / "items.jsonl", "test")
        for each in (person, other):
            await answer(each)
        await person.claim()  # a conversation of the other project
        with site.db.transaction():
            untouched = "SELECT id FROM items WHERE id NOT IN (SELECT item_id FROM assignments) AND gold_kind IS NULL"
            site.db.change("items", site.db.value(untouched), {"state": "retired"})
        assert done_by_round(site.db)[project.round_id] == Done(2, 4)
        async with site.person("admin") as admin:
            for page in ((await person.get("/")).text, (await admin.get("/admin")).text):
                assert words("progress.done", done=2, wanted=4, percent=50) in page
                assert page.count("<progress") == 1
        projects.open_round(site.db, project.row, "test")
        assert "<progress" not in (await person.get("/")).text


def test_a_bar_is_full_only_when_all_is_done() -> None:
    assert [Done(done, 1000).percent for done in (0, 9, 999, 1000)] == [0, 0, 99, 100]
