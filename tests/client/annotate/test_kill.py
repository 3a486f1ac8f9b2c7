"""kill -9 around COMMIT, again and again: no answer that was acknowledged is lost, and none is there twice."""

from __future__ import annotations

import contextlib
import json
import random
import re
import secrets
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest

from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.keeping.verify import problems
from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.storage.database import Database
from tests.client.annotate.killable import start
from tests.client.annotate.site import CHOOSE, begin

STORED = "slug: work\nkind: choose\nsource: stored\nqueue: {daily_cap_min: 1440}"
LIVE = CHOOSE.replace("helpful", "live")


class Browser:
    """Somebody at work, who sends again what was not acknowledged, as a page's outbox does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.cookies = httpx.Cookies()
        self.csrf = ""
        self.http = httpx.Client()
        self.acknowledged: dict[str, str] = {}  # submission -> answer
        self.pending: dict[str, Any] | None = None

    @contextlib.contextmanager
    def served(self, failpoint: str) -> Iterator[BaseProcess]:
        """A process that kills itself at the failpoint, if it gets there."""
        process, port = start(self.path, failpoint)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port or 9}", cookies=self.cookies, timeout=20) as self.http:
                yield process
            self.cookies = self.http.cookies
        finally:
            process.kill()
            process.join()
            process.close()

    def sign_in(self, code: str) -> None:
        self.page("/login")
        self.http.post("/login", data={"csrf": self.csrf, "code": code}, headers={"sec-fetch-site": "same-origin"})
        self.page("/consent")
        self.http.post("/consent", data={"csrf": self.csrf, "stored": "1", "stop": "1"}, headers={"sec-fetch-site": "same-origin"})

    def page(self, path: str) -> None:
        found = re.search(r'<meta name="csrf" content="(\w+)">', self.http.get(path).text)
        assert found
        self.csrf = found[1]

    def post(self, path: str, body: Any) -> dict[str, Any]:
        answer = self.http.post(path, json=body, headers={"x-csrf-token": self.csrf, "sec-fetch-site": "same-origin"})
        assert answer.status_code in (200, 202), answer.text
        return dict(answer.json())

    def answer_one(self) -> None:
        """First what is pending, the very same; then the next item."""
        if self.pending is None:
            state = self.post("/api/claim", {"project": "work"})["state"]
            choice = state["view"]["candidates"][0]["id"]
            self.pending = {"submission_id": secrets.token_hex(12), "assignment_id": state["assignment"]["id"], "body": {"choice": choice}}
        stored = self.post("/api/answers", self.pending)
        self.acknowledged[self.pending["submission_id"]] = stored["answer_id"]
        self.pending = None


def run_and_kill(path: Path, failpoints: Sequence[str]) -> tuple[Browser, int]:
    """(the browser, how often the process was killed)"""
    db = Database.create(path)
    begin(db, read_project(STORED))
    lines = "".join(
        json.dumps({"prompt": f"question {number}", "replies": ["a", "b"]}) + "\n" for number in range(13 * len(failpoints) + 20)
    )
    path.with_suffix(".jsonl").write_text(lines, encoding="utf-8")
    import_items(db, projects.open_project(db, "work"), path.with_suffix(".jsonl"), "test")
    _, code = accounts.create_account(db, "annotator", "amber-fox-1")
    db.close()
    browser, killed = Browser(path), 0
    with browser.served(""):
        browser.sign_in(code)
        browser.page("/")
    for failpoint in failpoints:
        with browser.served(failpoint) as process:
            try:
                for _ in range(12):
                    browser.answer_one()
            except httpx.TransportError:
                process.join(20)
                killed += process.exitcode == -signal.SIGKILL
    with browser.served(""):
        browser.answer_one()
    return browser, killed


def assert_nothing_lost_and_nothing_doubled(path: Path, browser: Browser) -> None:
    db = Database.open(path)
    stored = {row.submission_id: row.id for row in db.all("SELECT * FROM answers")}
    assert stored == browser.acknowledged
    assert db.value("SELECT count(*) FROM (SELECT 1 FROM answers WHERE state = 'current' GROUP BY assignment_id HAVING count(*) > 1)") == 0
    assert db.value("SELECT count(*) FROM assignments WHERE state = 'submitted'") == len(stored)
    assert problems(db) == []
    db.close()


def test_no_answer_is_lost_by_a_kill(tmp_path: Path) -> None:
    browser, killed = run_and_kill(tmp_path / "a.db", ["before-commit:5", "after-commit:6"])
    assert killed == 2
    assert_nothing_lost_and_nothing_doubled(tmp_path / "a.db", browser)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_no_answer_is_lost_by_two_hundred_kills(tmp_path: Path) -> None:
    draw = random.Random(2)
    failpoints = [f"{draw.choice(('before-commit', 'after-commit'))}:{draw.randint(3, 12)}" for _ in range(200)]
    browser, killed = run_and_kill(tmp_path / "a.db", failpoints)
    assert killed == 200
    assert_nothing_lost_and_nothing_doubled(tmp_path / "a.db", browser)
    print(f"{killed} kills, {len(browser.acknowledged)} answers acknowledged, 0 lost, 0 doubled")


def test_a_kill_before_the_replies_are_shown_draws_or_keeps_them(tmp_path: Path) -> None:
    """They are stored before anybody hears of them: after the start they are there, and no reply is drawn twice."""
    path = tmp_path / "a.db"
    db = Database.create(path)
    begin(db, read_project(LIVE))
    _, code = accounts.create_account(db, "annotator", "amber-fox-1")
    db.close()
    browser = Browser(path)
    with browser.served("before-ready:1") as process:
        browser.sign_in(code)
        browser.page("/")
        assignment = browser.post("/api/claim", {"project": "live"})["state"]["assignment"]["id"]
        with contextlib.suppress(httpx.TransportError):
            browser.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": "ab" * 12, "text": "Hello there"})
        process.join(20)
        assert process.exitcode == -signal.SIGKILL
    with browser.served(""):
        state = browser.post("/api/claim", {"project": "live"})["state"]
    assert [turn["state"] for turn in state["turns"]] == ["ready"]
    assert len(state["turns"][0]["view"]["candidates"]) == 4
