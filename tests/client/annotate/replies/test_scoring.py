"""Replies that people write are scored after the answer is stored: never before, never lost, once."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from polyhead.client import errors
from polyhead.client.annotate.keeping import verify
from polyhead.client.annotate.people import erasure
from polyhead.client.annotate.replies import scoring
from polyhead.client.annotate.replies.scoring import Counted
from tests.client.annotate.answers.test_kinds import add, claimed, rows, stored
from tests.client.annotate.model import SECRETS, FakeModel
from tests.client.annotate.site import RunningSite, running

CONFIG = stored("demonstrate", "hidden: {heads: [preference], rule_set: example-rules@1}\nprompt: {system: Be brief.}")
SAID = {"head": "preference", "kind": "preference", "version": 313131, "digest": "canary-digest-preference", "value": 0.625, "raw": 77.125}


async def written(site: RunningSite, path: Path, *texts: str) -> None:
    async with site.person(pseudonym="amber-fox-1") as person:
        for text in texts:
            add(site, path, {"messages": asked(text)})
            _, assignment, _ = await claimed(person)
            await person.answer(assignment, None, {"text": text})
        assert [secret for secret in SECRETS if secret.encode() in b"".join(person.received)] == []


async def until(site: RunningSite, wanted: Counted) -> None:
    """The counts are these, at the latest when nothing is left to do."""
    for _ in range(1000):
        if scoring.count(site.db) == wanted:
            return
        await asyncio.sleep(0)
    assert scoring.count(site.db) == wanted


async def test_a_written_reply_is_scored_after_its_answer(tmp_path: Path) -> None:
    """While no score is there the answer is stored and exported without one; an export up to an earlier point stays as it was."""
    async with running(tmp_path / "a.db", FakeModel(), CONFIG) as site:
        site.model.score_gate.clear()
        await written(site, tmp_path / "items.jsonl", "Yes.")
        assert scoring.count(site.db) == Counted(0, 1)
        before = keys(site, tmp_path)
        site.model.score_gate.set()
        await until(site, Counted(1, 0))
        [call] = site.model.scored
        assert call["items"] == [([{"role": "system", "content": "Be brief."}, *asked("Yes.")], [*map(ord, "Yes."), 2])]
        assert (call["heads"], call["rule_set"]) == (("preference",), "example-rules@1")
        assert (call["priority"], call["terminated"]) == ("interactive", True)
        [key] = keys(site, tmp_path)
        assert SAID.items() <= key["scores"][key["reply"]]["scores"]["preference"].items()
        assert "scores" not in before[0]
        async with site.person("admin") as admin:
            assert "Written replies with scores" in (await admin.get("/admin/health")).text


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"Say {text}"}]


def keys(site: RunningSite, path: Path) -> list[dict[str, Any]]:
    rows(site, path / "rows.jsonl", "polyhead-sft")
    return [json.loads(line) for line in (path / "rows.keys.jsonl").read_text(encoding="utf-8").splitlines()]


async def test_a_server_that_is_down_is_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "WAITS_S", (0.0,))
    async with running(tmp_path / "a.db", FakeModel(), CONFIG) as site:
        site.model.score_failures += [errors.Unavailable("down"), errors.ResourceExhausted("full"), errors.DeadlineExceeded("slow")]
        await written(site, tmp_path / "items.jsonl", "Yes.")
        await until(site, Counted(1, 0))
        assert len(site.model.scored) == 4


async def test_a_stop_before_the_score_loses_none(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), CONFIG) as site:
        site.model.score_gate.clear()
        await written(site, tmp_path / "items.jsonl", "Yes.")
    async with running(tmp_path / "a.db", FakeModel()) as site:
        await until(site, Counted(1, 0))
        site.app._app.state.site.scorer.wake()
        await until(site, Counted(1, 0))
        assert len(site.model.scored) == 1, "scored once"


async def test_a_reply_that_is_refused_holds_up_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is gone, a mistake of ours, a call that is always too slow: counted, said under Health, and tried at the next start."""
    monkeypatch.setattr(scoring, "WAITS_S", (0.0,))
    slow = [errors.DeadlineExceeded("slow")] * scoring.MAX_SLOW
    async with running(tmp_path / "a.db", FakeModel(), CONFIG) as site:
        site.model.score_failures += [errors.NotFound("no such head: preference"), ValueError("ours"), *slow]
        await written(site, tmp_path / "items.jsonl", "One.", "Two.", "Three.", "Four.")
        await until(site, Counted(1, 3))
        async with site.person("admin") as admin:
            assert "gives no score to 3 replies" in (await admin.get("/admin/health")).text
    async with running(tmp_path / "a.db", FakeModel()) as site:
        await until(site, Counted(4, 0))


async def test_only_what_people_wrote_where_heads_are_named_is_scored(tmp_path: Path) -> None:
    """And scores of erased words go with them."""
    async with running(tmp_path / "a.db", FakeModel(), stored("demonstrate")) as site:
        await written(site, tmp_path / "items.jsonl", "Yes.")
        assert scoring.count(site.db) == Counted(0, 0)
    async with running(tmp_path / "b.db", FakeModel(), CONFIG) as site:
        await written(site, tmp_path / "items.jsonl", "Yes.")
        await until(site, Counted(1, 0))
        assert "77.125" in events(site)
        erasure.erase(site.db, str(site.db.value("SELECT id FROM accounts WHERE pseudonym = 'amber-fox-1'")), "all", "test")
        assert "77.125" not in events(site)
        assert verify.problems(site.db) == []


def events(site: RunningSite) -> str:
    return "".join(row.body_json for row in site.db.all("SELECT body_json FROM events"))
