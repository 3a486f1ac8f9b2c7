"""Another trunk, or another tokenizer, in place of the one that a round began with: rounds of live work close, conversations go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from polyhead.client import Continuation
from polyhead.client.annotate.keeping import verify
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.web.catalogs import catalog
from polyhead.client.annotate.web.metrics import Stored
from polyhead.client.annotate.web.noticing import notice
from tests.client.annotate.model import FakeModel
from tests.client.annotate.site import CHOOSE, Person, RunningSite, begin, choice, running

STORED = "slug: stored\nkind: rank\nsource: stored"


async def poll(site: RunningSite) -> None:
    """What the application does every ten seconds."""
    shared = site.app._app.state.site
    await notice(shared, await shared.model.ask())


async def first_turn(person: Person) -> str:
    assignment = (await person.claim())["state"]["assignment"]["id"]
    turn = await person.say(assignment, "Hello there")
    await person.answer(assignment, turn, choice((await person.state())["turns"][0]["view"]))
    return str(assignment)


def turns(site: RunningSite) -> list[tuple[int, str, int]]:
    return [(row.number, row.state, row.context_rebuilt) for row in site.db.all("SELECT * FROM turns ORDER BY number, attempt")]


@pytest.mark.parametrize("change", [{"trunk_id": "other-trunk"}, {"tokenizer": "0ther" * 12}])
async def test_a_conversation_goes_on_from_its_messages(site: RunningSite, change: dict[str, str]) -> None:
    """The turn after the change is rendered again and says so; the one after that continues on the new server's ids."""
    async with site.person() as person:
        assignment = await first_turn(person)
        for name, value in change.items():
            setattr(site.model, name, value)
        await poll(site)
        for number, text in ((1, "And now?"), (2, "And then?")):
            turn = await person.say(assignment, text)
            view = (await person.state())["turns"][number]["view"]
            await person.answer(assignment, turn, choice(view))
    second, third = site.model.calls[-2]["prompt"], site.model.calls[-1]["prompt"]
    assert [message["role"] for message in second] == ["user", "assistant", "user"]
    assert isinstance(third, Continuation)
    assert turns(site) == [(1, "ready", 0), (2, "ready", 1), (3, "ready", 0)]
    assert verify.problems(site.db) == []


async def test_a_server_that_comes_in_the_middle_is_noticed(site: RunningSite) -> None:
    """Between the question for the trunk and the call: what was drawn on ids of another trunk is drawn again from the messages."""
    async with site.person() as person:
        assignment = await first_turn(person)
        site.model.next_trunk = "other-trunk"
        await person.say(assignment, "And now?")
    assert [isinstance(call["prompt"], Continuation) for call in site.model.calls] == [False, True, False]
    assert turns(site) == [(1, "ready", 0), (2, "ready", 1)]
    assert site.db.value("SELECT count(*) FROM candidates") == 8


async def test_pinned_heads_end_with_their_trunk(tmp_path: Path) -> None:
    """A version of another trunk with the same number is another head."""
    async with running(tmp_path / "a.db", FakeModel(), CHOOSE + "new_heads: pinned\n") as site, site.person() as person:
        assignment = await first_turn(person)
        site.model.trunk_id = "other-trunk"
        await poll(site)
        begun = await person.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello"}, 202)
        assert (await person.events(begun["turn_id"]))[-1] == ("failed", {"code": "HEAD_GONE"})
    assert len(site.model.calls) == 1


async def test_rounds_of_live_work_close_with_a_sentence(tmp_path: Path) -> None:
    """Nobody gets a new item; who is in a conversation finishes it; stored work goes on; the team reads why, until it opens a round."""
    locale = "zh-Hans"
    words = catalog(locale)
    async with (
        running(tmp_path / "a.db", FakeModel(), CHOOSE, STORED) as site,
        site.person() as busy,
        site.person() as idle,
        site.person("admin") as admin,
    ):
        await admin.form("/me", locale=locale)
        await idle.form("/me", locale=locale)
        assignment = await first_turn(busy)
        for _ in range(2):  # nothing is closed while nothing has changed
            await poll(site)
        assert open_slugs(site) == ["helpful", "stored"]
        site.model.trunk_id = "other-trunk"
        await poll(site)
        assert open_slugs(site) == ["stored"]
        assert (await idle.claim())["empty"] == "trunk_changed"
        assert words("done.trunk_changed") in (await idle.get("/")).text
        assert "/p/helpful/task" in (await busy.get("/")).text
        await busy.say(assignment, "And now?")
        for path in ("/admin", "/admin/p/helpful"):
            shown = (await admin.get(path)).text
            assert "canary-trunk, 70cafe70cafe → other-trunk, 70cafe70cafe" in shown, path
        assert words("admin.warn.trunk", projects="helpful") in (await admin.get("/admin/health")).text
        assert scraped(site) == 1.0
        await admin.form("/admin/p/helpful/rounds")
        await poll(site)
        assert open_slugs(site) == ["helpful", "stored"]
        for path in ("/admin", "/admin/p/helpful", "/admin/health"):
            assert "canary-trunk" not in (await admin.get(path)).text, path
        assert scraped(site) == 0.0
        assert (await idle.claim())["state"]["phase"] == "compose"


def scraped(site: RunningSite) -> float | None:
    """What an alert reads."""
    registry = CollectorRegistry()
    registry.register(Stored(site.db, lambda: True, None))
    return registry.get_sample_value("polyhead_annotate_rounds_ended_by_trunk")


def open_slugs(site: RunningSite) -> list[str]:
    query = "SELECT p.slug FROM rounds r JOIN projects p ON p.id = r.project_id WHERE r.closed_at IS NULL ORDER BY 1"
    return [row.slug for row in site.db.all(query)]


async def test_a_round_that_is_bound_to_nothing_stays_open(site: RunningSite) -> None:
    """As after `polyhead annotate project` while no server answers."""
    begin(site.db, read_project(CHOOSE.replace("helpful", "later")))
    trunk: Any = await site.model.trunk()
    assert projects.close_rounds_of_other_trunks(site.db, trunk) == []
    await poll(site)
    assert site.db.value("SELECT count(*) FROM rounds WHERE trunk_id = 'canary-trunk' AND closed_at IS NULL") == 2
