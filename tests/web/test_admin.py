"""The team's pages in a real browser: accessible in both languages and themes, on a narrow screen, and drawn as they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyhead.client.annotate import accounts, answers, assignments, projects, state
from polyhead.client.annotate.imports import import_items
from tests.web.conftest import TEXTS, Served, assert_accessible, focus_next, serve, sign_in, watch
from tests.web.test_choose import SHOTS, begin_work, say

WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 320, "height": 700}
VIEWS: list[Any] = [
    ("light-en", "en", {"color_scheme": "light", "viewport": WIDE}),
    pytest.param("dark-zh", "zh-Hans", {"color_scheme": "dark", "viewport": WIDE}, marks=pytest.mark.long),
    pytest.param("narrow-en", "en", {"color_scheme": "light", "viewport": NARROW}, marks=pytest.mark.long),
    pytest.param("dark-en", "en", {"color_scheme": "dark", "viewport": WIDE}, marks=pytest.mark.long),
    pytest.param("light-zh", "zh-Hans", {"color_scheme": "light", "viewport": WIDE}, marks=pytest.mark.long),
    pytest.param("narrow-zh", "zh-Hans", {"color_scheme": "dark", "viewport": NARROW}, marks=pytest.mark.long),
]
PATHS = (
    "",
    "/people",
    "/reports",
    "/review",
    *(f"/p/helpful{part}" for part in ("", "/progress", "/agreement", "/bias", "/strength", "/disputes")),
)


@pytest.mark.parametrize(("name", "locale", "options"), VIEWS)
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


@pytest.fixture
def disputed(tmp_path: Path) -> Iterator[Served]:
    """Three replies that two people have ranked differently."""
    for served in serve(tmp_path / "a.db", "slug: work\nkind: rank\nsource: stored\nqueue: {overlap: 2}"):
        project = projects.open_project(served.db, "work")
        item = {"messages": [{"role": "user", "content": "Why is the sky blue?"}], "replies": TEXTS[:3]}
        (tmp_path / "items.jsonl").write_text(json.dumps(item), encoding="utf-8")
        import_items(served.db, project, tmp_path / "items.jsonl", "test")
        for order in ((1, 2, 3), (3, 2, 1)):
            account, _ = accounts.create_account(served.db, "annotator", f"amber-fox-{order[0]}", languages=("en",))
            assignment = assignments.claim(served.db, account, project)
            assert assignment is not None
            shown = state.shown_state(served.db, assignment, "en")["view"]["candidates"]
            cards = sorted(shown, key=lambda card: str(card["text"]))
            ranks = {card["id"]: rank for card, rank in zip(cards, order, strict=True)}
            sent = {"submission_id": f"0123456789abcdef-{order[0]}", "assignment_id": assignment.id, "body": {"ranks": ranks}}
            answers.submit(served.db, account, sent, "en", b"x" * 32)
        yield served


def test_a_disagreement_is_decided_by_keys(browser: Any, disputed: Served) -> None:
    """Blind first, then with the others' answers before the eyes; axe-core finds nothing in either state."""
    context = browser.new_context(viewport=WIDE)
    page = context.new_page()
    problems = watch(page, disputed)
    sign_in(page, disputed, disputed.account("admin"))
    page.goto(f"{disputed.address}/admin/p/work/disputes")
    focus_next(page, "main li a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/items/*")
    assert "amber-fox" not in page.content()
    for step in ("blind", "seen"):
        assert_accessible(page, f"case {step}")
        SHOTS.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=SHOTS / f"admin-case-{step}.png", full_page=True)
        for rank in "213" if step == "blind" else "123":
            focus_next(page, "main select")
            page.keyboard.type(rank)
        focus_next(page, "main button.primary")
        page.keyboard.press("Enter")
        page.wait_for_selector("#others" if step == "blind" else "main .pill-closed")
        if step == "blind":
            assert "amber-fox-1" in page.content()
    [row] = disputed.db.all("SELECT * FROM adjudications")
    assert (sorted(row.json("first_body")["ranks"].values()), row.body_json != row.first_body_json) == ([1, 2, 3], True)
    context.close()
    assert problems == []
