"""Versions that stored replies came from: labelled with a trainer's token so that the server keeps them, and replies drawn again."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from polyhead.client import AsyncClient, errors
from polyhead.client.annotate.keeping import verify
from polyhead.client.annotate.keeping.versions import LABEL, Fate, Keeper, versions
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.replies import scoring
from polyhead.client.annotate.web.catalogs import catalog
from tests.client.annotate.answers.test_kinds import add
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, RunningSite, begin, choice, running
from tests.e2e.support import serving
from tests.e2e.tiny import save_tiny_llama

LIVE = CHOOSE.replace("canary-head", "reference") + "sampling: {max_new_tokens: 8}\nreveal: lockstep\n"
DRAWN = """
slug: work
kind: choose
arms: {fixed: [{head: policy, n: 1}, {head: reference, n: 1}]}
sampling: {max_new_tokens: 8}
prompt: {format: sparrow, system: Be brief.}
dialogue: {max_turns: 2, user: model}
"""
WRITTEN = "slug: written\nkind: demonstrate\nsource: stored\nhidden: {heads: [preference]}"


class FakeTrainer:
    """What the keeper calls of AsyncClient."""

    def __init__(self) -> None:
        self.labelled: list[str] = []
        self.error: Exception | None = None
        self.digest = ""  # "": the one that is asked for

    async def head(self, ref: str) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(digest=self.digest or f"canary-digest-{ref.partition('@')[0]}")

    async def label(self, ref: str, label: str) -> None:
        self.labelled.append(ref)

    async def unlabel(self, ref: str, label: str) -> None:
        self.labelled.remove(ref)


async def one_turn(site: RunningSite) -> None:
    async with site.person() as person:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Why is the sky blue?")
        view = (await person.state())["turns"][0]["view"]
        await person.answer(assignment, turn, choice(view))


def fates(site: RunningSite) -> dict[str, Fate]:
    return {each.ref: each.fate for each in versions(site.db)}


async def test_versions_are_labelled_once_and_let_go_for_good(site: RunningSite) -> None:
    trainer = FakeTrainer()
    keeper = Keeper(site.db, cast(AsyncClient, trainer))
    await one_turn(site)
    await keeper.keep()
    await keeper.keep()
    assert sorted(trainer.labelled) == ["canary-head@313131", "policy@313131"]
    assert set(fates(site).values()) == {Fate.KEPT}
    await keeper.let_go("policy@313131", "canary-digest-policy", "test")
    await keeper.keep()
    assert trainer.labelled == ["canary-head@313131"]
    assert fates(site)["policy@313131"] is Fate.LET_GO


async def test_what_the_server_has_no_more_is_gone(site: RunningSite) -> None:
    """No such version, or another one under its number: neither gets a label."""
    trainer = FakeTrainer()
    await one_turn(site)
    trainer.digest = "another"
    await Keeper(site.db, cast(AsyncClient, trainer)).keep()
    assert set(fates(site).values()) == {Fate.GONE}
    assert trainer.labelled == []


async def test_a_server_that_is_down_or_refuses_is_asked_again(site: RunningSite) -> None:
    trainer = FakeTrainer()
    keeper = Keeper(site.db, cast(AsyncClient, trainer))
    await one_turn(site)
    for error, refusal in (
        (errors.Unavailable("away"), ""),
        (errors.PermissionDenied("LabelHead is for trainers"), "LabelHead is for trainers"),
    ):
        trainer.error = error
        await keeper.keep()
        assert (keeper.refusal, set(fates(site).values())) == (refusal, {Fate.NOT_KEPT})
    trainer.error = None
    await keeper.keep()
    assert (keeper.refusal, set(fates(site).values())) == ("", {Fate.KEPT})


async def test_the_team_is_told_and_lets_go(tmp_path: Path) -> None:
    trainer, words = FakeTrainer(), catalog("en")
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE) as site, site.person("admin") as admin:
        await one_turn(site)
        page = (await admin.get("/admin/health")).text
        assert words("admin.warn.not_kept", count=2) in page
        shared = site.app._app.state.site
        shared.keeper = Keeper(site.db, cast(AsyncClient, trainer))
        await shared.keeper.keep()
        page = (await admin.get("/admin/health")).text
        assert words("admin.warn.not_kept", count=2) not in page
        assert words("admin.version.kept") in page
        await admin.form("/admin/versions", ref="policy@313131", digest="canary-digest-policy")
        await admin.form("/admin/versions", 404, ref="policy@313131", digest="canary-digest-policy")
    assert trainer.labelled == ["canary-head@313131"]


@pytest.mark.timeout(120)
async def test_a_stored_reply_is_drawn_again_on_a_deterministic_server(tmp_path: Path) -> None:
    """The same ids from the row alone, after so many newer versions that the server would have removed the one that wrote it; without
    the label it is gone."""
    with serving(save_tiny_llama(tmp_path / "model"), tmp_path / "store", "--deterministic", "--keep-versions", "1") as server:
        async with AsyncClient(server.address, timeout=60) as client:
            model = cast(FakeModel, SimpleNamespace(client=client))
            async with running(tmp_path / "a.db", model, LIVE) as site:
                keeper = Keeper(site.db, client)
                await one_turn(site)
                await a_drawn_message(site, tmp_path)
                await a_written_reply(site, tmp_path)
                await keeper.keep()
                assert set(fates(site).values()) == {Fate.KEPT}
                assert (await client.head("policy@1")).labels == (LABEL,)
                await renew_policy(client, 2)
                assert [each.outcome for each in await verify.replay(site.db, client, 20)] == ["same"] * 11
                [wrong] = site.db.all("SELECT * FROM candidates WHERE sampling_json IS NOT NULL ORDER BY id LIMIT 1")
                again = await verify._drawn_again(client, dataclasses.replace(wrong, columns={**wrong.columns, "token_ids": b"\0\0\0\0"}))
                assert again.outcome == "different"
                await keeper.let_go("policy@1", site.db.value("SELECT digest FROM candidates WHERE head_name = 'policy'"), "test")
                await renew_policy(client, 1)
                # all of them: a few that are picked at random may be of one kind
                assert {each.outcome for each in await verify.replay(site.db, client, 20)} == {"same", "gone"}


async def a_drawn_message(site: RunningSite, path: Path) -> None:
    """A dialogue in a transcript format, whose second message a head writes: a candidate like the replies, drawn again like them."""
    begin(site.db, read_project(DRAWN))
    async with site.person() as person:
        add(site, path / "drawn.jsonl", {"prompt": "Why is the sky blue?", "evidence": {"snippet": "Air."}})
        for number in (1, 2):
            state = (await person.claim("work"))["state"]
            events = await person.events(state["turns"][-1]["id"])
            assert events[-1][0] == "ready", events
            turn = (await person.state("work"))["turns"][-1]
            assert turn["text"], number
            await person.answer(state["assignment"]["id"], turn["id"], choice(turn["view"]))
    assert site.db.value("SELECT count(*) FROM turns WHERE user_source = 'model' AND state = 'ready'") == 1


async def a_written_reply(site: RunningSite, path: Path) -> None:
    """It gets a score of the preference head that is served."""
    begin(site.db, read_project(WRITTEN))
    async with site.person() as person:
        add(site, path / "written.jsonl", {"prompt": "Why is the sky blue?"}, project="written")
        state = (await person.claim("written"))["state"]
        await person.answer(state["assignment"]["id"], None, {"text": "Because of the air."})
    while scoring.count(site.db) != scoring.Counted(1, 0):
        assert not site.app._app.state.site.scorer.refused
        await asyncio.sleep(0.01)
    [row] = site.db.all("SELECT * FROM candidates WHERE origin = 'human'")
    assert math.isfinite(scoring.scores_of(site.db, row, 1 << 40)["scores"]["preference"]["value"])


async def renew_policy(client: AsyncClient, num: int) -> None:
    """So many newer versions, each active in turn."""
    weights = {name: np.array(value) for name, value in (await client.pull_head("policy")).items()}
    for number in range(num):
        name = next(each for each in weights if each.endswith("norm.weight"))
        weights[name] = weights[name] * np.asarray(1.0 + 0.01 * (number + 1), weights[name].dtype)
        await client.update({"policy": weights})
