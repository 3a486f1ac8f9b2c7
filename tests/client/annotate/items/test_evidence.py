"""Evidence of items and replies, from the file to the page and to the exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects import projects
from tests.client.annotate.answers.test_kinds import ARMS, MESSAGES, add, claimed, rows, stored
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import ids, running

MARKUP = "<script>alert(1)</script>"
SOURCE = {"title": f"Rayleigh {MARKUP}", "url": "https://example.org/sky?a=<b>", "snippet": "Air scatters short waves.", "query": "sky"}
ITEM = {"messages": MESSAGES, "evidence": SOURCE, "replies": ["a", {"text": "b", "evidence": [{"snippet": "It says b."}]}]}


async def test_evidence_is_shown_and_exported(tmp_path: Path) -> None:
    """Beside the item, on its reply's card, to the team, in the keys file, and in the texts of tools that show records."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site, site.person() as person, site.person("admin") as admin:
        add(site, tmp_path / "items.jsonl", ITEM)
        state, assignment, (a, b) = await claimed(person)
        assert state["item"]["evidence"] == [SOURCE]
        shown = {card["id"]: card["evidence"] for card in state["view"]["candidates"]}
        assert shown == {a: [], b: [{"snippet": "It says b."}]}
        await person.answer(assignment, None, {"ranks": {a: 2, b: 1}})
        [record] = rows(site, tmp_path / "rows.jsonl", "argilla")
        [task] = rows(site, tmp_path / "rows.jsonl", "label-studio")
        [key] = [json.loads(line) for line in (tmp_path / "rows.keys.jsonl").read_text(encoding="utf-8").splitlines()]
        page = (await admin.get(f"/admin/p/work/items/{site.db.value('SELECT id FROM items')}")).text
    letter = "AB"[ids(state["view"]).index(b)]
    assert record["prompt"] == task["data"]["dialogue"]
    assert record["prompt"].split("\n\n")[1:] == [
        f"Source: {SOURCE['title']} <{SOURCE['url']}>\nAir scatters short waves.", f"Source of reply {letter}:\nIt says b."
    ]  # fmt: skip
    assert key["evidence"] == {"item": [SOURCE], "replies": {b: [{"snippet": "It says b."}]}}
    assert MARKUP not in page
    assert "&lt;script&gt;" in page
    assert "It says b." in page


async def test_replies_with_one_text_show_what_any_of_them_names(tmp_path: Path) -> None:
    one, other = {"snippet": "one"}, {"snippet": "other"}
    replies = [{"text": "a", "evidence": one}, {"text": "a", "evidence": other}, "b"]
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": replies})
        state, _, _ = await claimed(person)
    shown = {card["text"]: card["evidence"] for card in state["view"]["candidates"]}
    assert shown["b"] == []
    assert sorted(card["snippet"] for card in shown["a"]) == ["one", "other"]


async def test_evidence_changes_an_item_and_its_lack_does_not(tmp_path: Path) -> None:
    """The same texts with other evidence are another item; what was imported before there was evidence is still found again."""
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        plain = {"messages": MESSAGES, "replies": ["a", "b"]}
        add(site, tmp_path / "items.jsonl", plain, ITEM, {**ITEM, "evidence": {"snippet": "other"}}, plain)
        assert site.db.value("SELECT count(*) FROM items") == 3
        old = "ac04887c"  # the beginning of the hash that earlier versions gave this item
        assert site.db.value("SELECT count(*) FROM items WHERE substr(hex(content_sha256), 1, 8) = ?", old.upper()) == 1


LIVE = f"slug: work\nkind: choose\n{ARMS}\ndialogue: {{max_turns: 2, user: item}}"
REPLIES = '"replies": ["a", "b"]'


@pytest.mark.parametrize(
    ("config", "more", "says"),
    [
        (stored("rank"), f'{REPLIES}, "evidence": []', "'evidence' must be a card, or a list of 1 to 9: 0"),
        (stored("rank"), f'{REPLIES}, "evidence": "x"', "'evidence' must be an object of title, url, snippet, query"),
        (stored("rank"), f'{REPLIES}, "evidence": [{{"score": 1}}]', r"'evidence\[0\]' has an unknown key 'score'"),
        (stored("rank"), f'{REPLIES}, "evidence": {{"title": 1}}', "'evidence.title' must be a text of at most 500"),
        (stored("rank"), f'{REPLIES}, "evidence": {{"query": "x"}}', "'evidence' must have a 'title', a 'url' or a 'snippet'"),
        (stored("rank"), f'{REPLIES}, "evidence": {{"url": "javascript:x"}}', "'evidence.url' must begin with http://"),
        (stored("rank"), f'{REPLIES}, "evidence": {{"url": "http://[x"}}', "'evidence.url' must begin with http://"),
        (stored("rank"), '"replies": ["a", {"text": "b"}]', r"'replies\[1\]' must be a text, or an object of 'text' and 'evidence'"),
        (stored("rank"), '"replies": ["a", {"text": "b", "evidence": {}}]', r"'replies\[1\].evidence' must have a 'title'"),
        (stored("rank"), f'{REPLIES}, "user_turns": ["x"]', "'user_turns' are what the user says between replies that are drawn live"),
        (LIVE, '"user_turns": ["x", " "]', "'user_turns' must be a list of texts, none of them empty"),
        (LIVE, '"user_turns": ["x", "y"]', "'user_turns' and the first message are 3 turns: the project's dialogue.max_turns is 2"),
        (stored("rank"), f'{REPLIES}, "id": "\\ud800"', "half a character"),
        (stored("rank"), f'{REPLIES}, "priority": NaN', "a number that is not finite"),
    ],
)
async def test_what_is_wrong_names_file_line_and_key(tmp_path: Path, config: str, more: str, says: str) -> None:
    """Half a character and NaN ended the import with a traceback."""
    async with running(tmp_path / "a.db", FakeModel(), config) as site:
        path = tmp_path / "items.jsonl"
        path.write_text(f'\n{{"prompt": "x", {more}}}\n', encoding="utf-8")
        with pytest.raises(Invalid, match=f"items.jsonl, line 2: .*{says}"):
            import_items(site.db, projects.open_project(site.db, "work"), path, "test")
        assert site.db.value("SELECT count(*) FROM items") == 0
