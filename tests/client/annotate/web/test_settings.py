"""What people set for themselves: keys of their own, or none; another sign-in code."""

from __future__ import annotations

import html
import json
import re
from typing import Any

from polyhead.client.annotate.web import settings
from polyhead.client.annotate.web.catalogs import catalog
from tests.client.annotate.site import Person, RunningSite, choice


async def keys_of_page(person: Person) -> dict[str, Any]:
    """As the task page's script reads them."""
    found = re.search('data-keys="([^"]*)"', (await person.get("/p/helpful/task")).text)
    assert found is not None
    return dict(json.loads(html.unescape(found[1])))


async def test_letters_are_ones_own_or_none(site: RunningSite) -> None:
    """Another letter, no letter, all single keys off; one letter for two things is refused and changes nothing."""
    async with site.person() as person:
        assert await keys_of_page(person) == {"letters": settings.LETTERS, "are_off": False}
        letters = {f"key-{act}": letter for act, letter in settings.LETTERS.items()}
        refused = await person.form("/me", 422, **{**letters, "key-tie": "U"})
        assert catalog("en")("me.twice") in refused.text
        await person.form("/me", 422, **{**letters, "key-tie": "!"})
        assert (await keys_of_page(person))["letters"] == settings.LETTERS
        await person.form("/me", single="off", **{**letters, "key-tie": "X", "key-break": ""})
        assert await keys_of_page(person) == {"letters": {**settings.LETTERS, "tie": "X", "break": ""}, "are_off": True}
        assert json.loads(site.db.value("SELECT settings_json FROM accounts")) == {"single": "off", "letters": {"tie": "X", "break": ""}}


async def test_another_sign_in_code(site: RunningSite) -> None:
    """The old code and every other session end; this one goes on."""
    async with site.person() as person, site.visitor() as other:
        shown = re.search(r'id="code"[^>]*>([^<]+)', (await person.form("/me/code", 200)).text)
        assert shown is not None
        await other.get("/login")
        await other.form("/login", code=shown[1])
        await person.get("/me")
        first = shown[1]
        await person.form("/me/code", 200)
        await other.get("/me", 303)  # signed out
        await other.get("/login")
        await other.form("/login", 403, code=first)
        await person.get("/me")


async def test_ones_own_answers(site: RunningSite) -> None:
    """With the project of each, and nobody else's."""
    async with site.person() as person, site.person() as other:
        assignment = (await person.claim())["state"]["assignment"]["id"]
        turn = await person.say(assignment, "Why is the sky blue?")
        stored = await person.answer(assignment, turn, choice((await person.state())["turns"][0]["view"]))
        for path in ("/", "/me/answers"):
            assert [f'data-undo="{stored["answer_id"]}"' in (await each.get(path)).text for each in (person, other)] == [True, False]


async def test_help_is_linked_and_has_ones_own_letters(site: RunningSite) -> None:
    """From the frame of every page and from the list of keys; the task page does not carry its sentences."""
    async with site.person() as person:
        for path in ("/", "/me", "/p/helpful/task"):
            assert 'href="/help"' in (await person.get(path)).text, path
        await person.form(
            "/me", locale="zh-Hans", **{f"key-{act}": {"tie": "X", "yes": ""}.get(act, key) for act, key in settings.LETTERS.items()}
        )
        page, words = html.unescape((await person.get("/help")).text), catalog("zh-Hans")
        assert words("help.kind.choose", tie="X") in page
        assert words("help.kind.rate", yes="–", no="N", next="J", previous="K") in page
        assert all(words(f"help.{part}.{number}") in page for part in ("stored", "pauses", "report") for number in (1, 2, 3))
        assert words("help.stored.1") not in html.unescape((await person.get("/p/helpful/task")).text)
