"""Dialogues whose user nobody here writes: scripts that items bring, and messages that a head draws."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from polyhead.client import Continuation, errors
from polyhead.client.annotate.admin import people
from polyhead.client.annotate.exports.options import options_of
from polyhead.client.annotate.keeping.rebuild import differences, rebuild
from polyhead.client.annotate.keeping.versions import versions
from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.projects.yaml_reader import ConfigError
from polyhead.client.annotate.replies.dialogues import USER_CANDIDATE
from tests.client.annotate.answers.test_kinds import ARMS, MESSAGES, add, rows
from tests.client.annotate.model import SECRETS, FakeModel
from tests.client.annotate.site import Person, RunningSite, choice, running

SCRIPT = f"slug: work\nkind: choose\n{ARMS}\ndialogue: {{max_turns: 3, user: item}}\ntext: {{min_chars: 60}}"  # of what people write
DRAWN = f"slug: work\nkind: choose\n{ARMS}\ndialogue: {{max_turns: 3, user: model, user_head: canary-head}}"


class Sparrow(FakeModel):
    """With two versions of a transcript format."""

    async def configurations(self, kind: Any = None) -> list[Any]:
        files = {number: f"default_reply_role: role{number}\nroles: {{user: {{opening: '||U:'}}}}" for number in (9, 10)}
        made = [SimpleNamespace(reference=f"sparrow@{number}", content=text, set_aside="") for number, text in files.items()]
        return made if kind == "transcript_format" else []


async def begun(site: RunningSite, person: Person, path: Path, **item: Any) -> tuple[str, dict[str, Any]]:
    """(assignment, state) of the first turn, its replies there."""
    add(site, path, {"messages": MESSAGES, **item})
    state = (await person.claim("work"))["state"]
    return state["assignment"]["id"], await ready(person, state)


async def ready(person: Person, state: dict[str, Any]) -> dict[str, Any]:
    assert (await person.events(state["turns"][-1]["id"]))[-1][0] == "ready"
    return await person.state("work")


async def answered(person: Person, assignment: str, state: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What the server says after the first card of the last turn is chosen."""
    turn = state["turns"][-1]
    return await person.answer(assignment, turn["id"], choice(turn["view"], **more))


async def test_a_script_goes_on_by_itself_and_ends_the_dialogue(tmp_path: Path) -> None:
    """Each turn begins with the answer to the one before; the page does not learn what comes later, and nobody writes in between."""
    async with running(tmp_path / "a.db", FakeModel(), SCRIPT) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl", user_turns=["And at dusk?"])
        assert "dusk" not in json.dumps(state)
        message = {"client_turn_id": "ab" * 12, "text": "My own words"}
        assert (await person.post(f"/api/assignments/{assignment}/turns", message, 409))["code"] == "SCRIPTED"
        told = await answered(person, assignment, state)
        turns = told["state"]["turns"]
        assert [(turn["text"], turn["is_own"]) for turn in turns] == [("Why is the sky blue?", False), ("And at dusk?", False)]
        state = await ready(person, told["state"])
        assert isinstance(site.model.calls[1]["prompt"], Continuation)
        assert site.model.calls[1]["prompt"].messages == ({"role": "user", "content": "And at dusk?"},)
        assert (await answered(person, assignment, state))["next"] == "item"
        assert (await person.claim("work"))["empty"] == "nothing_left"
        assert [each.typed for each in people.people(site.db)] == [0], "nobody has typed what the item says"


async def test_undo_goes_back_into_a_script(tmp_path: Path) -> None:
    """The turn that the answer began is abandoned, and begun again by the next answer."""
    async with running(tmp_path / "a.db", FakeModel(), SCRIPT) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl", user_turns=["And at dusk?"])
        told = await answered(person, assignment, state)
        await person.post(f"/api/answers/{told['answer_id']}/withdraw", {})
        told = await answered(person, assignment, await person.state("work"))
        assert [turn["text"] for turn in (await ready(person, told["state"]))["turns"]] == ["Why is the sky blue?", "And at dusk?"]


async def test_a_script_goes_on_though_the_process_ended_behind_the_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer was stored and the next turn not begun: the next look at the task begins it."""
    async with running(tmp_path / "a.db", FakeModel(), SCRIPT) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl", user_turns=["And at dusk?"])
        with monkeypatch.context() as patched:
            patched.setattr("polyhead.client.annotate.replies.user_turns.go_on", lambda *_: None)
            told = await answered(person, assignment, state)
        assert len(told["state"]["turns"]) == 1
        state = (await person.claim("work"))["state"]
        assert [turn["text"] for turn in state["turns"]][1:] == ["And at dusk?"]
        await ready(person, state)


async def test_a_head_writes_what_the_user_says(tmp_path: Path) -> None:
    """The page sees its text alone. Who wrote it is stored as for any reply: kept on the server, drawn again from its row, exported."""
    model = FakeModel(["one", "two", " And at dusk? ", "three", "four"])
    async with running(tmp_path / "a.db", model, DRAWN) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl")
        told = await answered(person, assignment, state)
        assert (told["state"]["phase"], told["state"]["turns"][1]["text"]) == ("generating", "")
        events = await person.events(told["state"]["turns"][1]["id"])
        assert ("user", {"text": "And at dusk?"}) in events
        assert events[-1][0] == "ready"
        state = await person.state("work")
        await answered(person, assignment, state)
        drawn = site.db.one("SELECT * FROM candidates WHERE text = ' And at dusk? '")
        turn = site.db.one("SELECT * FROM turns WHERE number = 2")
        assert drawn is not None
        assert turn is not None
        assert turn.json("form")[USER_CANDIDATE] == drawn.id
        assert turn.json("messages")[-1] == {"role": "user", "content": "And at dusk?"}
        assert (drawn.head_name, drawn.head_version, drawn.sample_seed) == ("canary-head", 313131, "990003")
        assert [each.num_replies for each in versions(site.db) if each.ref == "canary-head@313131"] == [1]
        assert len(rows(site, tmp_path / "rows.jsonl", "polyhead-pairs")) == 2
        keys = [json.loads(line) for line in (tmp_path / "rows.keys.jsonl").read_text(encoding="utf-8").splitlines()]
        assert keys[0]["user"] == {"source": "item"}
        assert keys[1]["user"] == {"source": "model", "head": "canary-head", "version": 313131, "digest": "canary-digest-canary-head"}
        sent = b"".join(person.received)
        rebuilt = rebuild(site.db, tmp_path / "rebuilt.db")
        assert differences(site.db, rebuilt) == []
        rebuilt.close()
    assert [secret for secret in SECRETS if secret.encode() in sent] == []
    asked = model.calls[1]
    assert [arm.head for arm in asked["arms"]] == ["canary-head"]
    assert [message["role"] for message in asked["prompt"]] == ["user", "assistant", "user"]  # the two have changed places
    assert asked["prompt"][1]["content"] == "Why is the sky blue?"


async def test_a_script_comes_before_what_a_head_writes(tmp_path: Path) -> None:
    model = FakeModel(["one", "two", "three", "four", "Drawn?", "five", "six"])
    async with running(tmp_path / "a.db", model, DRAWN) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl", user_turns=["And at dusk?"])
        for _ in range(2):
            state = await ready(person, (await answered(person, assignment, state))["state"])
        assert [turn["text"] for turn in state["turns"]][1:] == ["And at dusk?", "Drawn?"]


async def test_a_message_that_cannot_be_drawn_is_a_state_and_a_drawn_one_stays(tmp_path: Path) -> None:
    """Empty ones are drawn again, twice at most; then the turn has failed and can be tried again. When only the replies fail, the next
    attempt answers the same message."""
    model = FakeModel(["one", "two", "", " ", "\n"])
    async with running(tmp_path / "a.db", model, DRAWN) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl")
        turn = (await answered(person, assignment, state))["state"]["turns"][1]["id"]
        assert (await person.events(turn))[-1] == ("failed", {"code": "MODEL_FAILED"})
        state = await person.state("work")
        assert (state["phase"], state["turns"][1]["text"]) == ("failed", "")
        model.texts = ["And at dusk?"]
        model.failures = [None, errors.Internal("canary-error")]
        turn = (await person.post(f"/api/turns/{turn}/retry", {}, 202))["turn_id"]
        events = await person.events(turn)
        assert [kind for kind, _ in events][-2:] == ["user", "failed"]
        turn = (await person.post(f"/api/turns/{turn}/retry", {}, 202))["turn_id"]
        await person.events(turn)
        state = await person.state("work")
        assert (state["phase"], state["turns"][1]["text"]) == ("judge", "And at dusk?")
        assert sum("?" in row.text for row in site.db.all("SELECT text FROM candidates")) == 1


async def test_pinned_heads_go_on_through_a_swap(tmp_path: Path) -> None:
    """The one that writes the user's messages, too: from its first message on."""
    async with running(tmp_path / "a.db", FakeModel(), f"{DRAWN}\nnew_heads: pinned") as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl")
        for _ in range(2):
            state = await ready(person, (await answered(person, assignment, state))["state"])
            site.model.version += 1
        heads = [[arm.head for arm in call["arms"]] for call in site.model.calls]
    assert heads == [["policy"], ["canary-head"], ["policy@313131"], ["canary-head@313131"], ["policy@313131"]]


async def test_a_message_is_drawn_when_the_server_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyhead.client.annotate.replies.turns.WAITS_S", (0.0,))
    async with running(tmp_path / "a.db", FakeModel(), DRAWN) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl")
        site.model.failures += [errors.Unavailable("canary-error"), errors.ResourceExhausted("canary-error")]
        state = await ready(person, (await answered(person, assignment, state))["state"])
        assert state["turns"][1]["text"] == "reply 3"


async def test_a_stop_before_the_message_is_there_draws_it_after_the_next_start(tmp_path: Path) -> None:
    async with running(tmp_path / "a.db", FakeModel(), DRAWN) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl")
        site.model.gate.clear()
        told = await answered(person, assignment, state)
        assert told["state"]["phase"] == "generating"
        await asyncio.sleep(0)
    async with running(tmp_path / "a.db", FakeModel(["Again?"])) as site:
        turn = site.db.one("SELECT * FROM turns WHERE number = 2 AND state = 'generating'")
        assert turn is not None
        assert [kind async for kind, _ in site.app._app.state.site.turns.follow(turn)][-1] == "ready"
        assert site.db.value("SELECT user_text FROM turns WHERE id = ?", turn.id) == "Again?"


async def test_a_transcript_format_has_roles_of_its_own(tmp_path: Path) -> None:
    """The server refused the second turn: its formats know no assistant and no system. It goes on from the reply's exact ids, as without a
    format; the user's message is the user's turn there."""

    config = f"{DRAWN}\nprompt: {{format: sparrow, system: Be brief.}}"
    async with running(tmp_path / "a.db", Sparrow(), config) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl")
        await ready(person, (await answered(person, assignment, state))["state"])
        first, message, second = site.model.calls
    assert (first["prompt"], first["role_prompt"], first["format"]) == (MESSAGES, "Be brief.", "sparrow")
    assert [each["role"] for each in message["prompt"]] == ["user", "role10"]
    assert (message["reply_role"], message["format"]) == ("user", "sparrow")
    assert second["prompt"].messages == ({"role": "user", "content": "reply 3"},)
    assert "role_prompt" not in second
    async with running(tmp_path / "b.db", Sparrow(), config.replace("user: model", "user: annotator")) as site, site.person() as person:
        assignment = (await person.claim("work"))["state"]["assignment"]["id"]
        message = {"client_turn_id": "ab" * 12, "text": "Well,||U: and then?"}
        assert (await person.post(f"/api/assignments/{assignment}/turns", message, 422))["code"] == "TEXT_OPENING"
        await person.say(assignment, "Well, and then?")


async def test_evidence_stands_behind_half_of_the_replies(tmp_path: Path) -> None:
    """In a transcript format an item's evidence is a second prompt of the same call, with turns of a search. Its cards stand on the replies
    that have read it, one that fails is drawn again after its own prompt, and the dialogue goes on from what the chosen one has read."""
    config = DRAWN.replace("user: model", "user: item") + "\nprompt: {format: sparrow}"
    card = {"title": "Rayleigh", "snippet": "Air scatters.", "query": "blue sky"}
    model = Sparrow(["plain 1", "plain 2", "read 1", "broken", "read 2"])
    model.broken[3] = 1
    async with running(tmp_path / "a.db", model, config) as site, site.person() as person:
        assignment, state = await begun(site, person, tmp_path / "items.jsonl", evidence=card, user_turns=["And at dusk?"])
        first, again = model.calls
        found = [{"role": "search_query", "content": "blue sky"}, {"role": "search_results", "content": "Rayleigh\nAir scatters."}]
        assert first["prompts"] == [MESSAGES, [*MESSAGES, *found]]
        assert again["prompts"] == first["prompts"][1:]
        assert (state["item"]["evidence"], state["turns"][0]["total"]) == ([], 4)
        shown = {each["text"]: each["evidence"] for each in state["turns"][0]["view"]["candidates"]}
        assert shown == {"plain 1": [], "plain 2": [], "read 1": [card], "read 2": [card]}
        chosen = [each["text"] for each in state["turns"][0]["view"]["candidates"]].index("read 1")
        turn = state["turns"][0]
        told = await person.answer(assignment, turn["id"], choice(turn["view"], chosen))
        await ready(person, told["state"])
        assert model.calls[2]["prompts"] == [Continuation([5, 6, 6, 7], [8, 3], ({"role": "user", "content": "And at dusk?"},))]
        assert len(rows(site, tmp_path / "rows.jsonl", "polyhead-pairs")) == 3
        key = json.loads((tmp_path / "rows.keys.jsonl").read_text(encoding="utf-8").splitlines()[0])
        [row] = rows(site, tmp_path / "ids.jsonl", "polyhead-pairs", options_of(format_name="polyhead-pairs", ids=True))
        assert (row["chosen"], row["rejected"], row["prompt_ids"]) == ("read 1", "read 2", [5, 6, 6, 7])
        assert "different prompts: 1" in (tmp_path / "ids.md").read_text(encoding="utf-8")
        assert list(key["evidence"]["replies"].values()) == [[card], [card]]
        plain = site.db.all("SELECT id FROM candidates WHERE text LIKE 'plain%'")
        assert not {row.id for row in plain} & key["evidence"]["replies"].keys()
    five = config.replace("n: 2", "n: 5")
    async with running(tmp_path / "b.db", Sparrow(), five) as site:
        with pytest.raises(Invalid, match="'evidence' doubles the project's 5 replies"):
            add(site, tmp_path / "items.jsonl", {"messages": MESSAGES, "evidence": card})


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (f"kind: probe\n{ARMS.replace('2', '1')}\nrules: {{rule_set: r@1}}\ndialogue: {{user: model}}", "line 5: dialogue.user: a head"),
        ("kind: choose\nsource: stored\ndialogue: {user: model}", "line 4: dialogue.user: a head writes"),
        (f'kind: choose\n{ARMS}\ndialogue: {{user: model, user_head: ""}}', "line 4: dialogue.user_head: names the head"),
        (f"kind: choose\n{ARMS}\ndialogue: {{user: robot}}", "must be one of annotator, item, model"),
        (f"kind: rank\n{ARMS}\nanswer: {{then_rank: true}}", "line 4: answer.then_rank: ranks follow ratings"),
    ],
)
def test_projects_that_cannot_be_are_refused_by_line(more: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_project(f"slug: work\n{more}")
