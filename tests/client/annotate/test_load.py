"""Many people at once: every item is judged by exactly as many as wanted, nothing is lost or doubled, and no request fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from polyhead.client import AsyncClient
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.keeping.verify import problems
from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.projects import projects
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, ORIGIN, Person, RunningSite, choice, running
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama

STORED = "slug: work\nkind: choose\nsource: stored\nqueue: {overlap: 2}"
LIVE = CHOOSE.replace("canary-head", "reference") + "sampling: {max_new_tokens: 8}\n"


@contextlib.asynccontextmanager
async def at_work(site: RunningSite) -> AsyncIterator[Person]:
    """Somebody with a session. Signing in is limited by address, and all of these have one."""
    account, _ = accounts.create_account(site.db, "annotator", f"amber-fox-{secrets.token_hex(4)}")
    accounts.give_consent(site.db, account, "text", "en")
    cookies = {"polyhead": accounts.open_session(site.db, account)}
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(site.app), base_url=ORIGIN, cookies=cookies, timeout=300, verify=False
    ) as http:  # no certificates are read
        person = Person(http)
        await person.get("/")
        yield person


async def judge_stored(site: RunningSite, num: int, draw: random.Random) -> None:
    """So many items, or as many as there are; every third answer is sent twice, at the same time."""
    async with at_work(site) as person:
        for number in range(num):
            if (state := (await person.claim("work")).get("state")) is None:
                return  # what is left, this person has judged
            body, key = choice(state["view"], draw.randrange(2)), secrets.token_hex(12)
            repeats = 2 if number % 3 == 0 else 1
            sent = [person.answer(state["assignment"]["id"], None, body, submission=key) for _ in range(repeats)]
            stored = await asyncio.gather(*sent)
            assert len({each["answer_id"] for each in stored}) == 1


async def crowd(site: RunningSite, path: Path, num_people: int, num_each: int) -> None:
    """Items for exactly two people each, judged by all at once."""
    num_items = num_people * num_each // 2
    lines = "".join(json.dumps({"prompt": f"question {number}", "replies": ["a", "b"]}) + "\n" for number in range(num_items))
    path.write_text(lines, encoding="utf-8")  # noqa: ASYNC240  a test
    import_items(site.db, projects.open_project(site.db, "work"), path, "test")
    draw = random.Random(1)
    await asyncio.gather(*(judge_stored(site, num_each, random.Random(draw.random())) for _ in range(num_people)))
    for _ in range(num_people):  # an item that nobody of these may judge a second time is for somebody new
        await judge_stored(site, num_items, draw)
    counts = [row.num for row in site.db.all("SELECT count(*) AS num FROM assignments WHERE state = 'submitted' GROUP BY item_id")]
    assert counts == [2] * num_items
    assert site.db.value("SELECT count(*) FROM answers") == num_people * num_each
    assert site.db.value("SELECT count(*) FROM assignments WHERE state != 'submitted'") == 0
    assert problems(site.db) == []


async def test_a_crowd_judges_each_item_as_often_as_wanted(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), STORED) as site:
        await crowd(site, tmp_path / "items.jsonl", 6, 4)


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_fifty_people_and_a_rollout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty judge 20 stored items each, and then take part in a live dialogue on a server that a worker keeps busy."""
    monkeypatch.setattr("polyhead.client.annotate.web.api.TURNS_A_MINUTE", 10_000)
    with serving(save_tiny_llama(tmp_path / "model"), tmp_path / "store") as server:
        async with AsyncClient(server.address, timeout=300) as client, AsyncClient(server.address, timeout=300) as worker:
            model = cast(FakeModel, SimpleNamespace(client=client))
            async with running(tmp_path / "a.db", model, STORED, LIVE) as site:
                began = time.monotonic()
                await crowd(site, tmp_path / "items.jsonl", 50, 20)
                print(f"1000 answers of 50 people, checked, in {time.monotonic() - began:.1f} s", flush=True)
                rollouts = asyncio.create_task(_roll_out(worker))
                began = time.monotonic()
                await asyncio.gather(*(judge_live(site) for _ in range(50)))
                print(f"50 live turns of 4 replies beside rollouts in {time.monotonic() - began:.1f} s", flush=True)
                rollouts.cancel()
                await asyncio.gather(rollouts, return_exceptions=True)
                assert site.db.value("SELECT count(*) FROM answers n JOIN turns t ON t.id = n.turn_id") == 50
                assert site.db.value("SELECT count(*) FROM candidates WHERE origin = 'live'") == 200
                assert problems(site.db) == []


async def judge_live(site: RunningSite) -> None:
    async with at_work(site) as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Why is the sky blue?")
        view = (await person.state())["turns"][0]["view"]
        await person.answer(assignment, turn, choice(view))


async def _roll_out(worker: AsyncClient) -> None:
    prompts: list[Any] = [[5, 6, 7]] * 4
    while True:
        await worker.generate(prompts, n=8, max_new_tokens=32, ignore_eos=True)
