"""Every kind of task over HTTP: items in, the answer checked and stored, the trainer's row out."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyhead.client import Rule
from polyhead.client.annotate.exports.options import Options
from polyhead.client.annotate.exports.writing import export
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects import projects, rules
from polyhead.client.annotate.projects.config import Polarity, read_project
from polyhead.client.annotate.projects.yaml_reader import ConfigError
from polyhead.heads.training.data import read_comparisons, read_demonstrations, read_judgements
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import Person, RunningSite, begin, ids, running

ARMS = "arms: {fixed: [{head: policy, n: 2}]}"
MESSAGES = [{"role": "user", "content": "Why is the sky blue?"}]
DIALOGUE = [*MESSAGES, {"role": "assistant", "content": "You fool, because of the air."}]
READERS: dict[str, Callable[[Path], Sequence[Any]]] = {
    "polyhead-pairs": read_comparisons,
    "polyhead-ranks": read_comparisons,
    "polyhead-sft": read_demonstrations,
    "rules": read_judgements,
    "trl-preference": read_comparisons,
}
RULE = {"id": "no-insults", "text": "Do not insult the user."}


def stored(kind: str, more: str = "") -> str:
    return f"slug: work\nkind: {kind}\nsource: stored\n{more}"


def add(site: RunningSite, path: Path, *items: dict[str, Any], project: str = "work") -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    import_items(site.db, projects.open_project(site.db, project), path, "test")


def rows(site: RunningSite, path: Path, name: str, options: Options = Options()) -> list[dict[str, Any]]:  # noqa: B008  frozen
    """What is exported; `polyhead train` reads as many rows."""
    export(site.db, "work", name, path, options, "test")
    found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    if found and name in READERS:
        assert len(READERS[name](path)) == len(found)
    return found


async def claimed(person: Person) -> tuple[dict[str, Any], str, list[str]]:
    """(state, assignment, ids of the cards by their text)"""
    state = (await person.claim("work"))["state"]
    cards = sorted(state["view"]["candidates"], key=lambda card: str(card["text"])) if state["view"] else []
    return state, state["assignment"]["id"], [card["id"] for card in cards]


async def test_rank(tmp_path: Path) -> None:
    item = {"messages": MESSAGES, "replies": ["a", "b", "c"]}
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", item)
        _, assignment, (a, b, c) = await claimed(person)
        for wrong in ({a: 1, b: 2}, {a: 1, b: 3, c: 3}, {a: 0, b: 1, c: 2}, {a: 1, b: 2, c: True}):
            assert (await person.answer(assignment, None, {"ranks": wrong}, 422))["field"] == "body.ranks"
        await person.answer(assignment, None, {"ranks": {a: 2, b: 1, c: 2}})
        assert (await person.claim("work"))["empty"] == "nothing_left"
        pairs = rows(site, tmp_path / "pairs.jsonl", "polyhead-pairs")
        assert sorted((pair["chosen"], pair["rejected"]) for pair in pairs) == [("b", "a"), ("b", "c")]
        [ranks] = rows(site, tmp_path / "ranks.jsonl", "polyhead-ranks")
        assert dict(zip(ranks["replies"], ranks["ranks"], strict=True)) == {"a": 2, "b": 1, "c": 2}


@pytest.mark.parametrize("polarity", ["better", "worse"])
async def test_the_least_bad_reply_is_the_best_one_of_either_polarity(tmp_path: Path, polarity: str) -> None:
    """Exports turned the mark "least bad" of a red-team task round, too: the best reply came out as the worst."""
    config = stored("choose", f"answer: {{polarity: {polarity}}}")
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["a", "b"]})
        _, assignment, (a, _) = await claimed(person)
        await person.answer(assignment, None, {"none_good": True, "least_bad": a})
        [pair] = rows(site, tmp_path / "pairs.jsonl", "polyhead-pairs")
        assert (pair["chosen"], pair["rejected"]) == ("a", "b")
        assert [row["label"] for row in rows(site, tmp_path / "unpaired.jsonl", "trl-unpaired")] == [False, False]


@pytest.mark.parametrize("then_rank", [False, True])
async def test_ratings_say_what_is_good_whatever_a_stored_project_says(tmp_path: Path, then_rank: bool) -> None:
    """A project of ratings with polarity `worse`, which is refused now, exported the reply rated 1 as the better one. An order after the
    ratings was asked with the most harmful reply first, and is turned round."""
    text = stored("rate", f"answer: {{then_rank: {str(then_rank).lower()}}}")
    with pytest.raises(ConfigError, match=r"answer\.polarity: ratings ask how good a reply is"):
        read_project(text.replace("{", "{polarity: worse, "))
    config = read_project(text)
    async with running(tmp_path / "a.db", FakeModel()) as site, site.person() as person:
        begin(site.db, dataclasses.replace(config, answer=dataclasses.replace(config.answer, polarity=Polarity.WORSE)))
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["excellent", "harmful"]})
        _, assignment, (excellent, harmful) = await claimed(person)
        order = {"ranks": {harmful: 1, excellent: 2}} if then_rank else {}
        await person.answer(assignment, None, {"ratings": {excellent: {"overall": 7}, harmful: {"overall": 1}}, **order})
        assert [row["chosen"] for row in rows(site, tmp_path / "pairs.jsonl", "polyhead-pairs")] == ["excellent"]


@pytest.mark.parametrize(
    ("marked", "pairs"), [("same", [("same", "other"), ("same", "other")]), ("other", [("other", "same"), ("other", "same")])]
)
async def test_a_least_bad_reply_is_no_better_than_its_own_text(tmp_path: Path, marked: str, pairs: list[tuple[str, str]]) -> None:
    """Of two replies with one text only the marked one ranked first, and a pair had the same text on both sides."""
    async with running(tmp_path / "a.db", FakeModel(), stored("choose")) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["same", "same", "other"]})
        state, assignment, _ = await claimed(person)
        least_bad = next(card["id"] for card in state["view"]["candidates"] if card["text"] == marked)
        await person.answer(assignment, None, {"none_good": True, "least_bad": least_bad})
        found = rows(site, tmp_path / "pairs.jsonl", "polyhead-pairs")
        [ranks] = rows(site, tmp_path / "ranks.jsonl", "polyhead-ranks")
    assert [(pair["chosen"], pair["rejected"]) for pair in found] == pairs
    assert {(text, rank) for text, rank in zip(ranks["replies"], ranks["ranks"], strict=True)} == {(marked, 1), (pairs[0][1], 2)}


@pytest.mark.parametrize(
    ("scale", "position", "prefers", "margin"), [("hh8", 1, "left", 1.0), ("hh8", 5, "right", 0.1429), ("stiennon9", 5, "", 0)]
)
async def test_compare(tmp_path: Path, scale: str, position: int, prefers: str, margin: float) -> None:
    item = {"messages": MESSAGES, "replies": ["one", "two"]}
    async with (
        running(tmp_path / "a.db", FakeModel(), stored("compare", f"answer: {{strength: {scale}}}")) as site,
        site.person() as person,
    ):
        add(site, tmp_path / "items.jsonl", item)
        state, assignment, _ = await claimed(person)
        await person.answer(assignment, None, {"position": 10}, 422)
        await person.answer(assignment, None, {"scale": scale, "position": position})
        left, right = [card["text"] for card in state["view"]["candidates"]]
        found = rows(site, tmp_path / "rows.jsonl", "trl-preference")
    if prefers:
        assert found[0]["chosen"][0]["content"] == (left if prefers == "left" else right)
        assert found[0]["margin"] == margin
    else:
        assert found == []


async def test_rate_with_flags(tmp_path: Path) -> None:
    config = stored("rate", "answer: {flags: [polite], flag_texts: {polite: Is polite}}")
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["a", "b"]})
        _, assignment, (a, b) = await claimed(person)
        good = {"overall": 6, "flags": {"polite": True}}
        for wrong in ({a: good}, {a: good, b: {"overall": 8, "flags": {"polite": True}}}, {a: good, b: {"overall": 2, "flags": {}}}):
            assert (await person.answer(assignment, None, {"ratings": wrong}, 422))["field"].startswith("body.ratings")
        await person.answer(assignment, None, {"ratings": {a: good, b: {"overall": 2, "flags": {"polite": False}}}})
        [pair] = rows(site, tmp_path / "pairs.jsonl", "polyhead-pairs")
        assert (pair["chosen"], pair["rejected"]) == ("a", "b")


async def test_ratings_and_then_ranks(tmp_path: Path) -> None:
    """Both are needed; the ranks decide what is preferred, and both are exported where there is a place for them."""
    config = stored("rate", "answer: {then_rank: true}")
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["a", "b", "c"]})
        state, assignment, (a, b, c) = await claimed(person)
        assert state["project"]["then_rank"] is True
        ratings = {a: {"overall": 6}, b: {"overall": 6}, c: {"overall": 2}}
        for wrong in ({}, {"ranks": {a: 1, b: 2}}, {"ranks": {a: 1, b: 3, c: 3}}):
            assert (await person.answer(assignment, None, {"ratings": ratings, **wrong}, 422))["field"] == "body.ranks"
        await person.answer(assignment, None, {"ratings": ratings, "ranks": {a: 2, b: 1, c: 3}})
        pairs = rows(site, tmp_path / "pairs.jsonl", "polyhead-pairs")
        assert sorted((pair["chosen"], pair["rejected"]) for pair in pairs) == [("a", "c"), ("b", "a"), ("b", "c")]
        [record] = rows(site, tmp_path / "records.jsonl", "argilla")
    said = {record[f"reply_{letter}"]: [record[f"{name}_{letter}.response"] for name in ("overall", "rank")] for letter in "ABC"}
    assert said == {"a": [6, 2], "b": [6, 1], "c": [2, 3]}


async def test_rulecheck(tmp_path: Path) -> None:
    async with (
        running(tmp_path / "a.db", FakeModel(), stored("rulecheck", "rules: {rule_set: example-rules@1}")) as site,
        site.person() as person,
    ):
        add(site, tmp_path / "items.jsonl", {"messages": DIALOGUE, "rule": RULE})
        state, assignment, _ = await claimed(person)
        assert state["item"]["rule"] == RULE
        await person.answer(assignment, None, {"verdict": 5}, 422)
        await person.answer(assignment, None, {"verdict": 3, "quote": "You fool"})
        [row] = rows(site, tmp_path / "rows.jsonl", "rules")
    assert (row["rule"], row["label"], row["probed"]) == ("no-insults", "probably-broken", False)
    assert (row["messages"], row["completion"]) == (MESSAGES, DIALOGUE[-1]["content"])


async def test_demonstrate_and_edit(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("demonstrate")) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES})
        _, assignment, _ = await claimed(person)
        await person.answer(assignment, None, {"text": " "}, 422)
        await person.answer(assignment, None, {"text": "Air scatters blue."})
        assert rows(site, tmp_path / "rows.jsonl", "polyhead-sft") == [{"messages": MESSAGES, "completion": "Air scatters blue."}]
    async with running(tmp_path / "b.db", FakeModel(), stored("edit")) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "replies": ["Air."]})
        _, assignment, (candidate,) = await claimed(person)
        await person.answer(assignment, None, {"text": "Air scatters blue.", "candidate": candidate})
        assert site.db.value("SELECT replaces_id FROM candidates WHERE origin = 'edit'") == candidate


async def test_probe(tmp_path: Path) -> None:
    """A rule is assigned, each attempt has one reply, the verdict ends it; the next person gets the rule that is less covered."""
    config = "slug: work\nkind: probe\narms: {fixed: [{head: policy, n: 1}]}\nrules: {rule_set: example-rules@1, attempts: 2}"
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person, site.person() as other:
        project = projects.open_project(site.db, "work")
        assert (await person.post("/api/claim", {"project": "work"}, 503))["code"] == "MODEL_DOWN"  # the rules are not known yet
        rules.store_rules(site.db, project, "example-rules@1", [Rule("no-insults", "Do not insult."), Rule("no-lies", "Do not lie.")])
        state, assignment, _ = await claimed(person)
        await person.answer(assignment, None, {"verdict": 4}, 422)  # nothing was tried yet
        turn = await person.say(assignment, "Insult me!")
        await person.say(assignment, "Really!")
        late = {"client_turn_id": "cd" * 12, "text": "A third"}
        assert (await person.post(f"/api/assignments/{assignment}/turns", late, 409))["code"] == "NO_MORE_TURNS"
        await person.answer(assignment, None, {"verdict": 4, "broken_turns": [turn]})
        first, second = state["item"]["rule"]["id"], (await claimed(other))[0]["item"]["rule"]["id"]
        assert {first, second} == {"no-insults", "no-lies"}
        [row] = rows(site, tmp_path / "rows.jsonl", "rules")
    assert (row["rule"], row["label"], row["probed"]) == (first, "definitely-broken", True)
    assert [message["role"] for message in row["messages"]] == ["user", "assistant", "user"]


async def test_rules_are_drawn_at_random_if_a_project_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all of them, whatever is covered; and a project in other languages than a person reads has no work for that person."""
    more = "rules: {rule_set: example-rules@1, assign: random}\ntext: {languages: [en]}"
    async with running(tmp_path / "a.db", FakeModel(), f"slug: work\nkind: probe\n{ARMS.replace('2', '1')}\n{more}") as site:
        drawn: list[list[str]] = []
        monkeypatch.setattr(random.SystemRandom, "choice", lambda _, rules: (drawn.append([each["id"] for each in rules]), rules[0])[1])
        rules.store_rules(site.db, projects.open_project(site.db, "work"), "example-rules@1", [Rule("one", "One."), Rule("two", "Two.")])
        async with site.person() as person, site.person() as other:
            _, assignment, _ = await claimed(person)
            await person.say(assignment, "Insult me!")
            await person.answer(assignment, None, {"verdict": 4})
            await claimed(other)
            assert drawn == [["one", "two"], ["one", "two"]]
            site.db.execute("UPDATE accounts SET languages_json = '[\"ar\"]'")
            assert (await person.claim("work"))["empty"] == "language"


async def test_rules_of_a_project_that_comes_later_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were read when the program began, and a probe that was added while it ran had no rules."""
    monkeypatch.setattr("polyhead.client.annotate.replies.drawing.POLL_S", 0.01)
    asked = asyncio.Event()

    class Ruled(FakeModel):
        async def configurations(self, kind: Any = None) -> list[Any]:
            asked.set()  # what is returned is stored before anybody else runs
            return [SimpleNamespace(reference="example-rules@1", rules=[Rule(**RULE)], set_aside="")]

    async with running(tmp_path / "a.db", Ruled(), stored("rank")) as site, site.person() as person:
        assert not asked.is_set()
        begin(site.db, read_project(f"slug: later\nkind: probe\n{ARMS.replace('2', '1')}\nrules: {{rule_set: example-rules}}"))
        await asyncio.wait_for(asked.wait(), 10)
        assert (await person.claim("later"))["state"]["item"]["rule"] == RULE


async def test_a_live_turn_is_judged_again_by_somebody_else(tmp_path: Path) -> None:
    """Agreement on live work: the same four replies, in an order of their own, never for the one who has judged them."""
    config = f"slug: work\nkind: choose\n{ARMS}\ndialogue: {{max_turns: 1}}\nqueue: {{replay_share: 1.0}}"
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person, site.person() as other:
        _, assignment, _ = await claimed(person)
        turn = await person.say(assignment, "Why is the sky blue?")
        view = (await person.state("work"))["turns"][0]["view"]
        await person.answer(assignment, turn, {"choice": ids(view)[0]})
        again: dict[str, Any] = {}
        for _ in range(40):  # a replay comes up half of the time
            state, assignment, _ = await claimed(other)
            if state["item"]["is_stored"]:
                again = state
                break
            await other.post(f"/api/assignments/{assignment}/skip", {"reason": "other"})
        assert sorted(ids(again["view"])) == sorted(ids(view))
        assert again["item"]["messages"] == MESSAGES
        await other.answer(assignment, None, {"choice": ids(view)[1]})
        for _ in range(10):
            state, mine, _ = await claimed(person)
            assert not state["item"]["is_stored"]
            await person.post(f"/api/assignments/{mine}/skip", {"reason": "other"})
        assert len(rows(site, tmp_path / "rows.jsonl", "polyhead-pairs")) == 2
        keys = [json.loads(line) for line in (tmp_path / "rows.keys.jsonl").read_text(encoding="utf-8").splitlines()]
        assert len({key["dialogue"] for key in keys}) == 1  # a split by dialogue keeps a replay beside its turn


async def test_an_answer_after_undo_is_stored_though_its_turn_has_a_replay(tmp_path: Path) -> None:
    """The second replay of the turn broke a uniqueness rule: the new answer was refused with an error of ours."""
    config = f"slug: work\nkind: choose\n{ARMS}\nqueue: {{replay_share: 1.0}}"
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person:
        _, assignment, _ = await claimed(person)
        turn = await person.say(assignment, "Why is the sky blue?")
        view = (await person.state("work"))["turns"][0]["view"]
        first = await person.answer(assignment, turn, {"choice": ids(view)[0]})
        await person.post(f"/api/answers/{first['answer_id']}/withdraw", {})
        await person.answer(assignment, turn, {"choice": ids(view)[1]})
        assert site.db.value("SELECT count(*) FROM items WHERE source = 'replay'") == 1


async def test_items_of_a_live_project_bring_the_first_message(tmp_path: Path) -> None:
    config = f"slug: work\nkind: choose\n{ARMS}\ndialogue: {{max_turns: 1, user: item}}"
    async with running(tmp_path / "a.db", FakeModel(), config) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", {"messages": [{"role": "system", "content": "Be brief."}, *MESSAGES]})
        state, assignment, _ = await claimed(person)
        assert (await person.events(state["turns"][0]["id"]))[-1][0] == "ready"
        turn = (await person.state("work"))["turns"][0]
        assert turn["text"] == MESSAGES[0]["content"]
        assert site.model.calls[0]["prompt"] == [{"role": "system", "content": "Be brief."}, *MESSAGES]
        assert (await person.answer(assignment, turn["id"], {"choice": ids(turn["view"])[0]}))["next"] == "item"


async def test_gold_items_are_judged_and_look_like_others(tmp_path: Path) -> None:
    gold = {"messages": MESSAGES, "replies": ["good", "bad"], "gold": {"choice": 0}}
    async with running(tmp_path / "a.db", FakeModel(), stored("choose", "queue: {gold_every: 1}")) as site, site.person() as person:
        add(site, tmp_path / "items.jsonl", gold, {"prompt": "Another", "replies": ["x", "y"]})
        state, assignment, (bad, _) = await claimed(person)
        assert "gold" not in json.dumps(state)
        await person.answer(assignment, None, {"choice": bad})
        assert [row.is_passed for row in site.db.all("SELECT * FROM gold_results")] == [0]
        assert rows(site, tmp_path / "rows.jsonl", "polyhead-pairs") == []  # not a judgement for training


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2: not JSON"),
        ('{"prompt": "x", "messages": []}', "line 2: needs either"),
        ('{"prompt": "x", "replies": ["a"]}', "line 2: rank needs 2 to 9 replies: 1"),
        ('{"prompt": "x", "replies": ["a", "b"], "colour": 1}', "line 2: unknown key 'colour'"),
        ('{"messages": [{"role": "boss", "content": ""}], "replies": ["a", "b"]}', "line 2: each message"),
        ('{"prompt": "x", "replies": ["a", "b"], "gold": {"ranks": [1]}}', "line 2: 'gold': 'ranks' must be a list of 2"),
        ('{"prompt": "x", "replies": ["a", "a"], "gold": {"ranks": [1, 2]}}', "line 2: 'replies' of an item with a known answer must"),
        ('{"messages": [{"role": "assistant", "content": "x"}], "replies": ["a", "b"]}', "line 2: the last message must be the user's"),
        ('{"prompt": "x", "replies": ["a", "b"], "overlap": 0}', "line 2: 'priority' and 'overlap'"),
    ],
)
async def test_a_wrong_line_is_named_and_nothing_is_stored(tmp_path: Path, line: str, says: str) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        path = tmp_path / "items.jsonl"
        path.write_text('{"prompt": "x", "replies": ["a", "b"]}\n' + line + "\n", encoding="utf-8")
        with pytest.raises(Invalid, match=says):
            import_items(site.db, projects.open_project(site.db, "work"), path, "test")
        assert site.db.value("SELECT count(*) FROM items") == 0


async def test_duplicates_are_counted(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), stored("rank")) as site:
        path, project = tmp_path / "items.jsonl", projects.open_project(site.db, "work")
        path.write_text('{"prompt": "x", "replies": ["a", "b"]}\n' * 3, encoding="utf-8")
        assert import_items(site.db, project, path, "test", dry_run=True).num_items == 1
        assert site.db.value("SELECT count(*) FROM items") == 0
        first, second = (import_items(site.db, project, path, "test") for _ in range(2))
        assert (first.num_items, first.num_duplicates, second.num_items, second.num_duplicates) == (1, 2, 0, 3)
