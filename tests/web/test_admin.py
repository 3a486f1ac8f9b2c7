"""The team's pages in a real browser: accessible in both languages and themes, on a narrow screen, and drawn as they should be."""

from __future__ import annotations

from typing import Any

import pytest

from tests.web.conftest import Served, assert_accessible, sign_in, watch
from tests.web.test_choose import SHOTS, begin_work, say

VIEWS: list[tuple[str, str, dict[str, Any]]] = [
    ("light-en", "en", {"color_scheme": "light", "viewport": {"width": 1280, "height": 900}}),
    ("dark-zh", "zh-Hans", {"color_scheme": "dark", "viewport": {"width": 1280, "height": 900}}),
    ("narrow-en", "en", {"color_scheme": "light", "viewport": {"width": 320, "height": 700}}),
]
PATHS = (
    "",
    "/people",
    "/reports",
    "/review",
    *(f"/p/helpful{part}" for part in ("", "/progress", "/agreement", "/bias", "/strength", "/disputes")),
)


@pytest.mark.parametrize(("name", "locale", "options"), VIEWS, ids=[name for name, *_ in VIEWS])
def test_pages_of_the_team(browser: Any, served: Served, name: str, locale: str, options: dict[str, Any]) -> None:
    """After three judged turns: every page has its figures, axe-core finds nothing, and nothing scrolls sideways but tables."""
    judge(browser, served)
    context = browser.new_context(reduced_motion="reduce", **options)
    page = context.new_page()
    problems = watch(page, served)
    sign_in(page, served, served.account("admin", locale))
    for path in PATHS:
        page.goto(f"{served.address}/admin{path}")
        what = f"admin{path.replace('/', '-')}"
        assert_accessible(page, f"{name} {what}")
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth"), f"{name} {what} scrolls sideways"
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"{what}-{name}.png", full_page=True)
    context.close()
    assert problems == []


def judge(browser: Any, served: Served) -> None:
    """Three turns, each reply chosen once or more, by somebody at the keys."""
    context = browser.new_context()
    page = context.new_page()
    begin_work(page, served)
    for number in range(3):
        say(page, f"Why is the sky blue? {number}")
        page.keyboard.press(f"Digit{number + 1}")
        page.keyboard.press("Enter")
        page.wait_for_selector(f".turn.assistant >> nth={number}" if number < 2 else "#message:focus")
    context.close()
