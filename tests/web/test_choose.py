"""Choose the best of four in a real browser: by keys only, and through everything that happens to a browser."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from polyhead.client.annotate.people import accounts
from tests.client.annotate.site import CHOOSE
from tests.web.conftest import TEXTS, VIEWS, Served, focus_next, look, serve, sign_in, views, watch


def begin_work(page: Any, served: Served, locale: str = "en") -> None:
    """From the sign-in to the empty message field."""
    sign_in(page, served, served.account(locale=locale))
    focus_next(page, "a.primary")
    page.keyboard.press("Enter")
    page.wait_for_url("**/p/helpful")
    focus_next(page, "a.primary")
    page.keyboard.press("Enter")
    expect(page.locator("#message")).to_be_focused()


def say(page: Any, text: str) -> None:
    page.keyboard.type(text)
    page.keyboard.press("Control+Enter")
    expect(page.locator(".card")).to_have_count(4)


def bodies(served: Served) -> list[dict[str, Any]]:
    return [row.json("body") for row in served.db.all("SELECT * FROM answers ORDER BY received_at")]


def test_a_dialogue_by_keys_only(page: Any, served: Served) -> None:
    """Sign-in, consent, two turns, choice, tie, none and the least bad, undo, skip, finish; never a click."""
    begin_work(page, served)
    say(page, "Why is the sky blue?")
    assert sorted(page.locator(".card .text").all_inner_texts()) == sorted(TEXTS)  # markup stays text
    page.keyboard.press("Digit3")
    chosen = page.locator(".card.is-marked .text").inner_text()
    expect(page.locator("#summary")).to_have_text("C")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant .said")).to_have_text(chosen)
    expect(page.locator("#message")).to_be_focused()
    say(page, "And at dusk?")
    page.keyboard.press("Numpad0")
    expect(page.locator("#work .notice")).to_contain_text("least bad")
    page.keyboard.press("Enter")  # nothing is marked yet: nothing is sent
    page.keyboard.press("Digit2")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant")).to_have_count(2)
    page.keyboard.press("Escape")
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("KeyU")
    expect(page.locator("#summary")).to_have_text("Least bad: B")  # the old answer is the draft
    page.keyboard.press("Digit0")
    page.keyboard.press("Digit1")
    page.keyboard.press("KeyT")
    page.keyboard.press("Digit4")
    expect(page.locator("#summary")).to_have_text("A = D")
    page.keyboard.press("KeyC")
    page.keyboard.type("12 both are fine")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#message")).to_be_focused()
    focus_next(page, ".composer button:not(.primary)")
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_have_text("Write your first message")
    stored = bodies(served)
    assert [bool(body["none_good"]) for body in stored] == [False, True, False]
    assert len(stored[2]["tied"]) == 1
    assert stored[2]["comment"] == "12 both are fine"


def test_nothing_is_shown_before_all_replies_are_there(page: Any, served: Served) -> None:
    begin_work(page, served)
    served.on_loop(served.model.gate.clear)
    page.keyboard.type("Why is the sky blue?")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#status")).to_contain_text("0 of 4")
    assert not any(text in page.content() for text in TEXTS)
    page.reload()
    expect(page.locator("#status")).to_contain_text("0 of 4")
    served.on_loop(served.model.gate.set)
    expect(page.locator(".card")).to_have_count(4)
    assert served.db.value("SELECT count(*) FROM turns") == 1


@pytest.fixture
def lockstep(tmp_path: Path) -> Iterator[Served]:
    yield from serve(tmp_path / "a.db", f"{CHOOSE}reveal: lockstep\n")


def test_cards_grow_in_lockstep(browser: Any, lockstep: Served) -> None:
    """While replies are written every card has as many characters; nothing can be chosen yet, and axe-core finds nothing."""
    lockstep.model.texts = [f"{letter} reply of some length" for letter in "ABCD"] * 5
    lockstep.model.pause_after = 13
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(15_000)
    page = context.new_page()
    problems = watch(page, lockstep)
    begin_work(page, lockstep)
    page.keyboard.type("Why is the sky blue?")
    page.keyboard.press("Control+Enter")
    page.wait_for_function("() => [...document.querySelectorAll('.card .text')].filter((text) => text.textContent).length === 4")
    assert len({len(text) for text in page.locator(".card .text").all_text_contents()}) == 1
    page.keyboard.press("Digit1")
    expect(page.locator(".card.is-marked")).to_have_count(0)
    look(page, "lockstep")
    lockstep.on_loop(lockstep.model.pieces.set)
    expect(page.locator(".card .pick")).to_have_count(4)
    page.keyboard.press("Digit1")
    page.keyboard.press("Enter")
    expect(page.locator(".turn.assistant")).to_have_count(1)
    context.close()
    assert problems == []


def test_an_input_methods_enter_sends_nothing(page: Any, served: Served) -> None:
    """Its Enter and digits pick words; keyCode 229 stands for them where isComposing is missing."""
    begin_work(page, served)
    page.keyboard.type("Hello")
    compose = """(init) => document.activeElement.dispatchEvent(new KeyboardEvent('keydown',
        {key: 'Enter', code: 'Enter', ctrlKey: true, bubbles: true, ...init}))"""
    page.evaluate(compose, {"isComposing": True})
    page.evaluate(compose, {"keyCode": 229})
    expect(page.locator("#message")).to_have_value("Hello")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".card")).to_have_count(4)
    page.evaluate("() => document.body.dispatchEvent(new KeyboardEvent('keydown', {code: 'Digit1', isComposing: true, bubbles: true}))")
    expect(page.locator(".card.is-marked")).to_have_count(0)
    assert served.db.value("SELECT count(*) FROM turns") == 1


def test_an_answer_survives_a_line_that_is_down(browser: Any, served: Served) -> None:
    """Given while offline, it waits in the browser over a reload, and is stored once when the line is back."""
    context = browser.new_context()
    context.set_default_timeout(10_000)
    page = context.new_page()
    begin_work(page, served)
    say(page, "Why is the sky blue?")
    context.set_offline(True)
    page.keyboard.press("Digit1")
    page.keyboard.press("Enter")
    expect(page.locator("#banner")).to_contain_text("Not connected")
    assert bodies(served) == []
    assert page.evaluate("() => JSON.parse(localStorage.getItem('polyhead.outbox')).length") == 1
    context.set_offline(False)
    page.reload()
    expect(page.locator(".turn.assistant")).to_have_count(1)
    assert len(bodies(served)) == 1
    assert page.evaluate("() => JSON.parse(localStorage.getItem('polyhead.outbox')).length") == 0
    context.close()


def test_the_keys_of_a_question_end_with_it(page: Any, served: Served) -> None:
    """After "Why do you skip this?" was closed, 1 in "Still there?" skipped the task."""
    begin_work(page, served)
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("KeyS")
    expect(page.locator("#dialog .choices")).to_be_visible()
    page.keyboard.press("Escape")
    page.evaluate("async () => { (await import('/static/dialogs.js')).ask('Still there?'); }")
    page.keyboard.press("Digit1")
    expect(page.locator("#dialog")).to_be_visible()
    assert served.db.value("SELECT count(*) FROM assignments WHERE state = 'skipped'") == 0


def test_a_reload_keeps_order_and_marks(page: Any, served: Served) -> None:
    begin_work(page, served)
    say(page, "Why is the sky blue?")
    before = page.locator(".card .text").all_inner_texts()
    page.keyboard.press("Digit4")
    page.reload()
    expect(page.locator("#summary")).to_have_text("D")
    assert page.locator(".card .text").all_inner_texts() == before


def test_trusted_types_refuse_markup(browser: Any, served: Served) -> None:
    page = browser.new_page()
    page.goto(f"{served.address}/login")
    refused = page.evaluate("() => { try { document.body.innerHTML = '<b>x</b>'; return ''; } catch (error) { return error.name; } }")
    page.close()
    assert refused == "TypeError"


@pytest.mark.parametrize("view", views("light", "phone-dark-zh", "rtl"))
def test_pages_are_accessible_and_fit(browser: Any, served: Served, view: str) -> None:
    """Every page and every question over the task, in both themes, both languages, both directions, and on a narrow screen."""
    locale, options = VIEWS[view]
    context = browser.new_context(reduced_motion="reduce", **options)  # axe measures colours: nothing may be half faded in
    page = context.new_page()
    problems = watch(page, served)
    page.goto(f"{served.address}/login?lang={locale}")
    look(page, f"login-{view}")
    page.goto(f"{served.address}/i/{accounts.create_invite(served.db)}?lang={locale}")
    look(page, f"invite-{view}")
    page.locator("button.primary").tap()
    page.wait_for_selector("#code")
    look(page, f"welcome-{view}")
    page.goto(f"{served.address}/consent")
    look(page, f"consent-{view}")
    context.clear_cookies()
    begin_work(page, served, locale)
    look(page, f"compose-{view}")
    say(page, "Why is the sky blue?")
    page.keyboard.press("Digit3")
    look(page, f"choose-{view}")
    page.keyboard.press("Digit0")
    page.keyboard.press("Digit2")
    look(page, f"least-bad-{view}")
    for key, what in (("Shift+Slash", "keys"), ("KeyG", "guidelines"), ("KeyS", "skip"), ("KeyR", "report")):
        page.keyboard.press(key)
        page.wait_for_selector("dialog[open]")
        look(page, f"{what}-{view}")
        page.keyboard.press("Escape")
    page.evaluate("() => document.activeElement.blur()")
    page.keyboard.press("KeyB")
    look(page, f"break-{view}")
    for path in ("/", "/me", "/me/answers", "/help", "/p/helpful", "/no/such/page"):
        page.goto(served.address + path)
        look(page, f"page{path.replace('/', '-')}-{view}")
    context.close()
    assert [each for each in problems if "404" not in each] == []
