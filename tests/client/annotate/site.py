"""The whole application in this process, and people who use it: over HTTP as a browser would, without one."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import ProjectConfig, read_project
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.app import make_app
from tests.client.annotate.model import FakeModel

ORIGIN = "http://annotate.test"
CHOOSE = """
slug: helpful
kind: choose
title: {en: Helpful replies, zh-Hans: 有帮助的回复}
arms: {fixed: [{head: policy, n: 2}, {head: canary-head, n: 2}]}
dialogue: {max_turns: 3}
answer: {reasons: [wrong-fact, too-long]}
"""


@dataclass
class Person:
    """One browser: cookies, the CSRF token of its last page, and every byte that it was sent."""

    http: httpx.AsyncClient
    csrf: str = ""
    received: list[bytes] = field(default_factory=list)

    async def get(self, path: str, status: int = 200) -> httpx.Response:
        response = await self.http.get(path)
        return self._took(response, status)

    async def form(self, path: str, status: int = 303, **values: Any) -> httpx.Response:
        headers = {"sec-fetch-site": "same-origin"}
        response = await self.http.post(path, data={"csrf": self.csrf, **values}, headers=headers)
        return self._took(response, status)

    async def post(self, path: str, body: Any, status: int = 200, method: str = "POST") -> dict[str, Any]:
        headers = {"x-csrf-token": self.csrf, "sec-fetch-site": "same-origin"}
        content = json.dumps(body)  # half a character goes out as an escape
        return dict(self._took(await self.http.request(method, path, content=content, headers=headers), status).json())

    async def events(self, turn_id: str) -> list[tuple[str, dict[str, Any]]]:
        """All events of a turn's stream; it ends by itself."""
        text = (await self.get(f"/api/turns/{turn_id}/events")).text
        found = re.findall(r"^event: (\w+)\ndata: (.*)$", text, re.MULTILINE)
        return [(kind, json.loads(data)) for kind, data in found]

    async def claim(self, project: str = "helpful") -> dict[str, Any]:
        return await self.post("/api/claim", {"project": project, "tab_id": "tab"})

    async def say(self, assignment: str, text: str) -> str:
        """Begins a turn and waits for its replies."""
        begun = await self.post(f"/api/assignments/{assignment}/turns", {"client_turn_id": secrets.token_hex(12), "text": text}, 202)
        events = await self.events(begun["turn_id"])
        assert events[-1][0] == "ready", events
        return str(begun["turn_id"])

    async def state(self, project: str = "helpful") -> dict[str, Any]:
        return dict((await self.get(f"/api/state?project={project}")).json()["state"])

    async def answer(self, assignment: str, turn: str | None, body: Any, status: int = 200, submission: str = "") -> dict[str, Any]:
        sent = {"submission_id": submission or secrets.token_hex(12), "assignment_id": assignment, "turn_id": turn, "body": body}
        return await self.post("/api/answers", sent, status)

    def _took(self, response: httpx.Response, status: int) -> httpx.Response:
        self.received.append(str(response.headers.raw).encode() + response.content)
        assert response.status_code == status, f"{response.status_code} {response.text[:400]}"
        if found := re.search(r'<meta name="csrf" content="(\w+)">', response.text):
            self.csrf = found[1]
        return response


@dataclass
class RunningSite:
    """The application under test."""

    db: Database
    model: FakeModel
    app: Any

    @contextlib.asynccontextmanager
    async def visitor(self) -> AsyncIterator[Person]:
        """Somebody who is not signed in."""
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url=ORIGIN) as http:
            yield Person(http)

    @contextlib.asynccontextmanager
    async def person(self, role: str = "annotator", pseudonym: str = "") -> AsyncIterator[Person]:
        """Somebody who has signed in and consented."""
        _, code = accounts.create_account(self.db, role, pseudonym or f"{role}-{secrets.token_hex(3)}", languages=("en", "zh-Hans"))
        async with self.visitor() as person:
            await person.get("/login")
            await person.form("/login", code=code.lower())
            await person.get("/consent")
            await person.form("/consent", stored="1", stop="1")
            yield person


@contextlib.asynccontextmanager
async def running(path: Path, model: FakeModel, *configs: str, **options: Any) -> AsyncIterator[RunningSite]:
    """The application on a database, made if it is not there, with an open round of each project."""
    is_new = not path.exists()  # noqa: ASYNC240  a test
    db = Database.create(path) if is_new else Database.open(path)
    if is_new:
        for text in configs:
            begin(db, read_project(text))
    app = make_app(db, model.client, **options)
    try:
        async with app._app.router.lifespan_context(app._app):  # type: ignore[attr-defined]
            yield RunningSite(db, model, app)
    finally:
        db.close()


def begin(db: Database, config: ProjectConfig) -> None:
    projects.open_round(db, projects.store_project(db, config, "test"), "test")


def ids(view: dict[str, Any]) -> list[str]:
    return [card["id"] for card in view["candidates"]]


def choice(view: dict[str, Any], index: int = 0, **more: Any) -> dict[str, Any]:
    """The body of an answer that chooses a card."""
    return {"choice": ids(view)[index], **more}
