"""The team's pages in a real browser: accessible in both languages and themes, on a narrow screen, and drawn as they should be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from polyhead.client.annotate.admin import messages
from polyhead.client.annotate.answers import answers
from polyhead.client.annotate.items import assignments
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.web import state
from tests.client.annotate.site import begin
from tests.web.conftest import TEXTS, VIEWS, Served, focus_next, look, serve, sign_in, views, watch
from tests.web.test_choose import begin_work, say

PATHS = (
    "",
    "/people",
    "/reports",
    "/review",
    "/health",
    "/log",
    *(f"/p/helpful{part}" for part in ("", "/items", "/progress", "/agreement", "/bias", "/strength", "/disputes", "/export")),
)

PLACE_OF = """end => {
    const text = [...document.querySelectorAll("td")].find((each) => each.textContent.includes("[6%–79%]")).firstChild;
    const range = document.createRange(), at = text.data.indexOf(end);
    range.setStart(text, at);
    range.setEnd(text, at + end.length);
    return range.getBoundingClientRect().left;
}"""


@pytest.mark.parametrize("view", views("light", "phone-dark-rtl"))
def test_pages_of_the_team(browser: Any, served: Served, view: str) -> None:
    """After three judged turns: every page has its figures, axe-core finds nothing, and nothing scrolls sideways but tables."""
    judge(browser, served)
    tell(served)
    locale, options = VIEWS[view]
    context = browser.new_context(reduced_motion="reduce", **options)
    page = context.new_page()
    problems = watch(page, served)
    sign_in(page, served, served.account("admin", locale))
    item = served.db.value("SELECT id FROM items ORDER BY rowid")
    for path in (*PATHS, f"/p/helpful/items/{item}"):
        page.goto(f"{served.address}/admin{path}")
        look(page, f"admin{path.replace('/', '-').replace(item, 'one')}-{view}")
        if path.endswith("/bias"):
            low, high = (page.evaluate(PLACE_OF, end) for end in ("6%", "79%"))
            assert low < high, "an interval begins with its lower end, from right to left, too"
    context.close()
    assert problems == []


def test_a_file_of_items_and_an_export(browser: Any, disputed: Served, tmp_path: Path) -> None:
    """Wrong lines are named, a good file is stored, and an export is counted and taken, all without a script on the pages."""
    context = browser.new_context(java_script_enabled=False, accept_downloads=True)
    context.set_default_timeout(15_000)
    page = context.new_page()
    page.goto(f"{disputed.address}/login")
    page.fill("#code", disputed.account("admin"))
    page.click("button.primary")
    page.goto(f"{disputed.address}/admin/p/work/items")
    file = tmp_path / "more.jsonl"
    file.write_text('{"prompt": 7}\n', encoding="utf-8")
    page.set_input_files("#file", file)
    page.click("main .primary")
    assert "line 1: 'prompt' must be a text" in page.locator("[role=alert]").inner_text()
    file.write_text(json.dumps({"prompt": "Why is the sea blue?", "replies": ["a", "b"]}), encoding="utf-8")
    page.set_input_files("#file", file)
    page.click("main .primary")
    assert "more.jsonl: 1 items of 1 lines were stored" in page.locator("main [role=status]").inner_text()
    page.click("text=Why is the sea blue?")
    page.click("button[value=retired]")
    assert page.locator("h1 + .pill").inner_text() == "retired"
    page.goto(f"{disputed.address}/admin/p/work/export")
    page.click("button[value=count]")
    assert page.locator("#count-title").inner_text() == "6 rows of 2 answers"
    with page.expect_download() as download:
        page.click("button[value=download]")
    assert download.value.suggested_filename == "work-polyhead-pairs.zip"
    context.close()


def tell(served: Served) -> None:
    """What the pages say at times: a message that is not read yet, a round that was closed with its trunk, a bar."""
    begin(served.db, read_project("slug: work\nkind: rank\nsource: stored\ntitle: Rankings"))
    with served.db.transaction():
        person = served.db.value("SELECT id FROM accounts")
        messages.send(served.db, person, "Please read the guidelines once more.\n请再读一遍说明。", person)
        first, second = (row.id for row in served.db.all("SELECT id FROM rounds ORDER BY rowid"))
        served.db.change("rounds", first, {"closed_at": served.db.now(), "close_reason": "trunk"})
        content = {"messages": [{"role": "user", "content": "Why?"}], "has_replies": True}
        item = {"id": "0" * 24, "round_id": second, "source": "import", "lang": "", "content_json": json.dumps(content)}
        served.db.insert("items", {**item, "content_sha256": b"x", "overlap": 3, "created_at": served.db.now()})


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
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    problems = watch(page, disputed)
    sign_in(page, disputed, disputed.account("admin"))
    page.goto(f"{disputed.address}/admin/p/work/disputes")
    focus_next(page, "main li a")
    page.keyboard.press("Enter")
    page.wait_for_url("**/admin/items/*")
    assert "amber-fox" not in page.content()
    for step in ("blind", "seen"):
        look(page, f"admin-case-{step}")
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
