"""What a person sets or reads beside the work, in a real browser: keys, guidelines, two drafts, known answers explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from polyhead.client.annotate.admin import messages
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.projects import projects
from tests.web.conftest import PHONE, VIEWS, Served, look, serve, sign_in, watch
from tests.web.test_choose import begin_work, bodies, say

GOLD = "slug: work\nkind: choose\nsource: stored\nqueue: {training: 1, gold_every: 1, gold_after: 2}"
REPLIES = ["It mirrors the sea.", "Air scatters blue light."]
KNOWN = {"prompt": "Why is the sky blue?", "replies": REPLIES, "gold": {"choice": 1, "why": "Physics."}}


def test_keys_of_ones_own(page: Any, served: Served) -> None:
    """Tie on X, then no single keys at all: T does nothing, X does, and at last only Ctrl+Enter."""
    begin_work(page, served)
    page.goto(f"{served.address}/me")
    page.locator("form summary").click()
    page.locator("#key-tie").select_option("X")
    page.locator("main form button.primary").click()
    page.goto(f"{served.address}/p/helpful/task")
    say(page, "Why is the sky blue?")
    expect(page.locator("#marks kbd").first).to_have_text("X")
    for key in ("Digit1", "KeyT", "KeyX", "Digit2"):
        page.keyboard.press(key)
    expect(page.locator("#summary")).to_have_text("A = B")
    page.goto(f"{served.address}/me")
    page.locator("form summary").click()
    page.locator("input[name=single][value=off]").check()
    page.locator("main form button.primary").click()
    page.goto(f"{served.address}/p/helpful/task")
    expect(page.locator("#summary")).to_have_text("A = B")
    page.keyboard.press("Digit3")
    page.keyboard.press("Enter")
    expect(page.locator("#summary")).to_have_text("A = B")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#message")).to_be_focused()
    assert len(bodies(served)[0]["tied"]) == 1


def test_guidelines_stand_beside_the_work(page: Any, served: Served) -> None:
    """Keys go on working; a reload leaves them where they are; Escape closes them."""
    begin_work(page, served)
    say(page, "Why is the sky blue?")
    page.keyboard.press("KeyG")
    page.keyboard.press("Digit2")
    expect(page.locator("#summary")).to_have_text("B")
    look(page, "guidelines-beside")
    page.reload()
    expect(page.locator("#guide")).to_be_visible()
    expect(page.locator("#summary")).to_have_text("B")
    page.keyboard.press("Escape")
    expect(page.locator("#guide")).to_be_hidden()


def test_of_two_drafts_the_person_chooses(browser: Any, served: Served) -> None:
    """Another browser has saved since: this one asks, and goes on with its own."""
    context = browser.new_context()
    page = context.new_page()  # not watched: the refusal is an error of the console
    begin_work(page, served)
    served.db.execute("UPDATE assignments SET draft_rev = draft_rev + 5, draft_json = '{}'")
    page.keyboard.type("Mine")
    expect(page.locator("#dialog-title")).to_have_text("A newer draft is open elsewhere.")
    page.locator("#dialog .choices button").nth(1).click()
    expect(page.locator("#dialog")).to_be_hidden()
    expect(page.locator("#message")).to_have_value("Mine")
    page.wait_for_function("async () => (await (await fetch('/api/state?project=helpful')).text()).includes('Mine')")
    context.close()


@pytest.mark.parametrize("view", ["phone-dark-zh", "light"])
def test_a_message_of_the_team(browser: Any, served: Served, view: str) -> None:
    """On the overview and above the work, in the words that were sent; read by a key, it is gone from both."""
    locale, options = VIEWS[view]
    context = browser.new_context(reduced_motion="reduce", **options)
    context.set_default_timeout(15_000)
    page = context.new_page()
    problems = watch(page, served)
    sign_in(page, served, served.account(locale=locale))
    for text in ("Please <b>slow</b> down.\n请慢一点。", "Thank you!"):
        messages.send(served.db, served.db.value("SELECT id FROM accounts"), text, "boss")
    page.reload()
    expect(page.locator(".message .prose").first).to_have_text("Please <b>slow</b> down.\n请慢一点。")
    look(page, f"message-home-{view}")
    page.goto(f"{served.address}/p/helpful/task")
    expect(page.locator("#messages .message")).to_have_count(2)
    look(page, f"message-task-{view}")
    page.locator("#messages button").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#messages .message")).to_have_count(1)
    page.goto(served.address)
    page.locator(".message button").click()
    expect(page.locator(".message")).to_have_count(0)
    context.close()
    assert problems == []


@pytest.fixture
def known(tmp_path: Path) -> Iterator[Served]:
    """A training item, then two with known answers."""
    for running in serve(tmp_path / "a.db", GOLD):
        lines = [{**KNOWN, "gold_kind": "training"}, *({**KNOWN, "prompt": f"Why {number}?"} for number in range(2))]
        (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
        import_items(running.db, projects.open_project(running.db, "work"), tmp_path / "items.jsonl", "test")
        yield running


@pytest.mark.parametrize("view", ["phone", "wide"])
def test_known_answers_are_explained(browser: Any, known: Served, view: str) -> None:
    """After training at once, later as examples before the next item; accessible, by keys."""
    context = browser.new_context(reduced_motion="reduce", **(PHONE if view == "phone" else {"viewport": {"width": 1280, "height": 860}}))
    context.set_default_timeout(15_000)
    page = context.new_page()
    problems = watch(page, known)
    sign_in(page, known, known.account())
    look(page, f"home-training-{view}")
    page.goto(f"{known.address}/p/work/task")
    answer(page, "It mirrors the sea.")
    expect(page.locator("#question")).to_have_text("The team sees it differently")
    expect(page.locator(".told")).to_contain_text("Physics.")
    look(page, f"explained-{view}")
    page.keyboard.press("Enter")
    answer(page, "It mirrors the sea.")
    expect(page.locator("#question")).to_have_text("Answers that differ from the team's")
    page.locator("#work a.primary").click()
    look(page, f"examples-{view}")
    page.locator("main button.primary").click()
    expect(page.locator(".card")).to_have_count(2)
    context.close()
    assert problems == []


def answer(page: Any, text: str) -> None:
    expect(page.locator("#question")).to_have_text("Which reply is best?")  # an answer that is explained has cards, too
    expect(page.locator(".card")).to_have_count(2)
    page.keyboard.press(f"Digit{page.locator('.card .text').all_inner_texts().index(text) + 1}")
    page.keyboard.press("Enter")
