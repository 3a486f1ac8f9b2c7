"""Nothing that tells one head from another reaches a browser: every secret has a value of its own, and all bytes are searched for it."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from polyhead.client import errors
from polyhead.client.annotate.admin import messages
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.replies.candidates import has_leak
from tests.client.annotate.model import SECRETS, FakeModel
from tests.client.annotate.site import CHOOSE, RunningSite, choice, running


async def test_no_secret_is_in_any_byte_sent(site: RunningSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, JSON, events, headers and errors, through two turns with a redraw, a failure and every refusal."""
    monkeypatch.setattr("polyhead.client.annotate.replies.turns.WAITS_S", (0.0,))
    site.model.broken[1] = 1
    async with site.person() as person:
        messages.send(site.db, site.db.value("SELECT id FROM accounts"), "Please read the guidelines again.", "boss")
        for path in ("/", "/p/helpful", "/p/helpful/task", "/me"):
            await person.get(path)
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Hello there")
        view = (await person.state())["turns"][0]["view"]
        await person.answer(assignment, turn, {"choice": "nothing"}, 422)
        await person.answer(assignment, turn, choice(view))
        await person.answer(assignment, turn, choice(view), 409)
        site.model.failures += [errors.Unavailable("canary-error"), errors.Internal("canary-error canary-head")]
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "More"}, 202)
        assert [kind for kind, _ in await person.events(begun["turn_id"])][-1] == "failed"
        await person.post("/api/reports", {"assignment_id": assignment, "candidate_id": view["candidates"][0]["id"], "text": "odd"})
        await person.get("/api/turns/none/events", 404)
        await person.get("/no/such/page", 404)
        for route in site.app._app.routes:  # pages of the team, which hold heads and digests
            if getattr(route, "path", "").startswith("/admin"):
                path = route.path.replace("{slug}", "helpful").replace("{report}", "strength").replace("{", "").replace("}", "")
                await person.get(path, 403) if "GET" in route.methods else await person.form(path, 403)
        async with site.person("admin") as admin:
            shown = (await admin.get("/admin/p/helpful/strength")).text
            assert "canary-head@313131" in shown, "admins see heads: the pages above would have held secrets"
        sent = b"".join(person.received)
    stored = "".join(str(row.columns) for row in site.db.all("SELECT * FROM candidates"))
    assert sent.count(b"Please read the guidelines again.") > 3
    for secret in SECRETS:
        assert secret.encode() not in sent, secret
        assert secret in stored or secret == "canary-error", f"{secret} is stored nowhere: the test looks for nothing"


async def test_cards_have_the_same_keys_and_no_order_of_their_own(site: RunningSite) -> None:
    async with site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Hello there")
        events = await person.events(turn)  # again, of a turn that is over
    assert [kind for kind, _ in events] == ["ready"]
    cards = events[0][1]["candidates"]
    assert {tuple(card) for card in cards} == {("id", "slot", "letters", "text", "cut", "evidence")}
    assert [card["slot"] for card in cards] == [0, 1, 2, 3]


async def test_nothing_of_a_reply_is_sent_before_all_are_there(tmp_path: Path) -> None:
    """While three of four are finished, the state and the stream hold counts alone."""
    model = FakeModel([f"secret-text-{number}" for number in range(4)])
    async with running(tmp_path / "a.db", model, CHOOSE) as site, site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        model.gate.clear()
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello"}, 202)
        row = site.db.one("SELECT * FROM turns WHERE id = ?", begun["turn_id"])
        assert row is not None
        following = site.app._app.state.site.turns.follow(row)
        kind, data = await anext(following)
        assert (kind, data) == ("state", {"state": "generating", "done": 0, "total": 4})
        assert "secret-text" not in json.dumps(await person.state())
        model.gate.set()
        kinds = [kind async for kind, _ in following]
        assert kinds[-1] == "ready"


def test_the_order_is_uniform() -> None:
    """Over 4000 views each of four replies is in each slot as often: chi-square with 9 degrees of freedom below its 0.999 quantile."""
    draw = random.Random(7)
    counts = Counter((key, slot) for _ in range(4000) for slot, key in enumerate(dialogues.shuffled("abcd", draw)))
    assert sum((count - 1000) ** 2 / 1000 for count in counts.values()) < 27.88
    assert len(counts) == 16


async def test_a_view_is_shuffled_stored_and_kept(site: RunningSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.client.annotate.replies.dialogues.shuffled", lambda rows: list(reversed(rows)))
    async with site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        await person.say(assignment, "Hello there")
        views = [(await person.state())["turns"][0]["view"] for _ in range(3)]
    assert [card["text"] for card in views[0]["candidates"]] == ["reply 4", "reply 3", "reply 2", "reply 1"]
    assert views[0] == views[1] == views[2]


@pytest.mark.parametrize(
    ("text", "leaks"),
    [
        ("I follow a strict policy on that.", False),  # a first head's plain name is a word
        ("I am policy@7.", True),
        ("As gemma-heron I can say", True),
        ("gemma-herons are birds", False),
        ("I was made by ACME.", True),
    ],
)
def test_leaks_are_found(text: str, leaks: bool) -> None:
    assert has_leak(text, ("policy", "policy@7", "gemma-heron", "acme")) is leaks
