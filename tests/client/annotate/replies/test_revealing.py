"""Replies while they are written: every card at one pace, and nothing that tells which is ahead or has ended."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.projects.yaml_reader import ConfigError
from polyhead.client.annotate.replies.revealing import Revealed
from tests.client.annotate.model import SECRETS, FakeModel
from tests.client.annotate.site import CHOOSE, choice, running

LOCKSTEP = CHOOSE + "reveal: lockstep\n"
STREAM = "slug: work\nkind: probe\nreveal: stream\narms: {fixed: [{head: policy, n: 1}]}\nrules: {rule_set: r@1, attempts: 2}"
TEXTS = ["a long reply, the longest of them all", "short", "a reply of middle length", "two words"]


@pytest.mark.parametrize("seed", range(20))
def test_no_card_is_ahead_and_all_of_each_arrives(seed: int) -> None:
    """Whatever the order of pieces, and with a reply that fails in the middle and begins again."""
    draw = random.Random(seed)
    slots = draw.sample(range(4), 4)
    revealed, left, shown, num_sent = Revealed(slots), list(TEXTS), [""] * 4, 0
    has_failed = False
    while any(left):
        reply = draw.choice([number for number, text in enumerate(left) if text])
        size = draw.randint(1, 4)
        piece, left[reply] = left[reply][:size], left[reply][size:]
        revealed.add(reply, piece)
        if not left[reply]:
            revealed.finish(reply, TEXTS[reply])
        elif not has_failed and draw.random() < 0.05:
            has_failed, left[reply] = True, TEXTS[reply]
            revealed.begin_again(reply)
        if delta := revealed.since(num_sent):
            shown = [text if delta["from"] == 0 else shown[slot] + text for slot, text in enumerate(delta["texts"])]
            num_sent = delta["from"] + max(map(len, delta["texts"]))
        written = [len(TEXTS[number]) - len(left[number]) for number in range(4) if left[number]]
        most = min(written) if written else 1000
        assert all(len(text) == min(most, len(TEXTS[slots.index(slot)])) for slot, text in enumerate(shown))
    assert shown == [TEXTS[slots.index(slot)] for slot in range(4)]


async def test_a_page_sees_the_cards_grow_into_the_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and texts alone; each card ends as the reply of its slot, and no secret is in any byte. `ready` brings the rest."""
    monkeypatch.setattr("polyhead.client.annotate.replies.turns.REVEAL_S", 0.0)
    model = FakeModel(TEXTS)
    model.pause_after = 9
    async with running(tmp_path / "a.db", model, LOCKSTEP) as site, site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello there"}, 202)
        row = site.db.one("SELECT * FROM turns WHERE id = ?", begun["turn_id"])
        assert row is not None
        following = site.app._app.state.site.turns.follow(row)
        shown = [""] * 4
        async for kind, data in following:
            if kind == "delta":
                assert set(data) == {"from", "texts"}
                shown = [text if data["from"] == 0 else shown[slot] + text for slot, text in enumerate(data["texts"])]
                if not model.pieces.is_set():
                    assert len({len(text) for text in shown}) == 1, "a card is ahead of the others"
            if any(shown):
                model.pieces.set()
        view = (await person.state())["turns"][0]["view"]
        for card, text in zip(view["candidates"], shown, strict=True):
            assert text
            assert card["text"].startswith(text)
        assert sorted(card["text"] for card in view["candidates"]) == sorted(TEXTS)
        assert site.db.value("SELECT reveal FROM views") == "lockstep"
        events = await person.events(begun["turn_id"])  # of a turn that is over: the cards at once
        assert [kind for kind, _ in events] == ["ready"]
        await person.answer(assignment, begun["turn_id"], choice(view, 2))
        sent = b"".join(person.received)
    for secret in SECRETS:
        assert secret.encode() not in sent, secret


async def test_a_reply_that_fails_is_written_again_in_its_slot(tmp_path: Path) -> None:
    model = FakeModel(["one", "two", "three", "four", "again"])
    model.broken[1] = 1
    async with running(tmp_path / "a.db", model, LOCKSTEP) as site, site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Hello there")
        view = (await person.state())["turns"][0]["view"]
        assert sorted(card["text"] for card in view["candidates"]) == ["again", "four", "one", "three"]
        assert site.db.value("SELECT count(*) FROM candidates WHERE turn_id = ?", turn) == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("slug: a\nkind: rank\nsource: stored\nreveal: lockstep", "these are stored"),
        (CHOOSE + "reveal: stream\n", "one reply at a time, and these arms make 4"),
        (CHOOSE + "reveal: slowly\n", "together, lockstep, stream"),
    ],
)
def test_a_reveal_that_cannot_be_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        read_project(text)
    assert read_project(STREAM).reveal.value == "stream"


def test_one_reply_streams() -> None:
    revealed: Any = Revealed([0])
    revealed.add(0, "One ")
    assert revealed.since(0) == {"from": 0, "texts": ["One "]}
    revealed.finish(0, "One reply")
    assert revealed.since(4) == {"from": 4, "texts": ["reply"]}
    assert revealed.since(9) is None
