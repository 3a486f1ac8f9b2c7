"""The queue as a machine whose steps hypothesis draws: people claim, answer, repeat, undo, skip, take breaks and come late, in any order.

Lists of steps have a least length: hypothesis' own state machines draw short ones mostly, in which nobody is handed anything."""

from __future__ import annotations

import contextlib
import functools
import json
import random
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyhead.client.annotate.answers import answers
from polyhead.client.annotate.items import assignments
from polyhead.client.annotate.items.imports import import_items
from polyhead.client.annotate.keeping.verify import problems
from polyhead.client.annotate.people import accounts
from polyhead.client.annotate.problems import Clash, Forbidden
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.storage.database import Database, Row
from polyhead.client.annotate.web import state
from tests.client.annotate.site import begin

PEOPLE = tuple(f"amber-fox-{number}" for number in range(4))
LEASE_MS = 30 * 60_000
CONFIG = "slug: work\nkind: choose\nsource: stored\nqueue: {{overlap: {overlap}, gold_every: 4, gold_warn: 0, gold_limit: 0}}"


@functools.cache
def template(overlap: int, num_items: int) -> Path:
    """A database with such a project, four people, two known answers, and one item that the first of the people wrote."""
    folder = Path(tempfile.mkdtemp(prefix="polyhead-queue-"))
    db = Database.create(folder / "a.db")
    begin(db, read_project(CONFIG.format(overlap=overlap)))
    names = [accounts.create_account(db, "annotator", name)[0] for name in PEOPLE]
    items = [{"prompt": f"question {number}", "replies": ["a", "b"]} for number in range(num_items)]
    items += [{"prompt": f"known {number}", "replies": ["a", "b"], "gold": {"choice": 0}} for number in range(2)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    import_items(db, projects.open_project(db, "work"), folder / "items.jsonl", "test")
    with db.transaction():
        db.change("items", db.value("SELECT id FROM items WHERE content_json LIKE '%question 0%'"), {"author_id": names[0]})
    db.close()
    return folder / "a.db"


class Queue:
    """What people did is kept beside the database, and compared with it after every step."""

    def __init__(self, overlap: int, num_items: int, seed: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "a.db"
        shutil.copy(template(overlap, num_items), path)
        self.db = Database.open(path)
        self.db.execute("PRAGMA synchronous = OFF")  # nothing is killed here
        self.clock = self.db.now()
        self.db.now = lambda: self.clock
        self.draw = random.Random(seed)
        self.project = projects.open_project(self.db, "work")
        self.person = {row.pseudonym: row.id for row in self.db.all("SELECT id, pseudonym FROM accounts")}
        self.handed_out: dict[str, list[str]] = {name: [] for name in PEOPLE}
        self.acknowledged: dict[str, tuple[str, str, dict[str, Any]]] = {}  # submission -> (person, assignment, body)
        self.withdrawn: set[str] = set()

    def claim(self, name: str) -> None:
        """The lease that there is, or a new one of an item that fits; nothing only where nothing fits."""
        with self.db.transaction():
            assignments.expire(self.db)
        live, fitting = assignments.current(self.db, self.person[name], self.project), self._fitting(name)
        found = assignments.claim(self.db, self.person[name], self.project, self.draw)
        if found is None:
            assert fitting == [], f"{name} gets nothing, though these fit"
            return
        gold = self.db.value("SELECT gold_kind FROM items WHERE id = ?", found.item_id)
        assert found.id == live.id if live else gold or found.item_id in fitting
        assert found.id == _some(assignments.claim(self.db, self.person[name], self.project)).id
        if found.id not in self.handed_out[name]:
            self.handed_out[name].append(found.id)

    def submit(self, name: str, place: int, index: int, repeats: int) -> None:
        """Any assignment that this person was ever handed, however late; the same again is the same, another body is refused."""
        if not (key := self._assignment(name, place)):
            return
        before, body = assignments.get(self.db, key), self._body(key, index)
        submission = secrets.token_hex(12)
        sent = {"submission_id": submission, "assignment_id": key, "body": body}
        try:
            stored = answers.submit(self.db, self.person[name], sent, "en", b"x" * 32)
        except Clash:
            assert before.state in ("submitted", "skipped", "voided"), f"an answer was refused while its assignment was {before.state}"
            return
        self.acknowledged[submission] = (name, stored.answer_id, body)
        for _ in range(repeats):
            assert answers.submit(self.db, self.person[name], sent, "en", b"x" * 32).answer_id == stored.answer_id
        with pytest.raises(Clash):
            answers.submit(self.db, self.person[name], {**sent, "body": self._body(key, 1 - index)}, "en", b"x" * 32)
        with pytest.raises(Clash):
            answers.submit(self.db, self.person[name], {**sent, "submission_id": secrets.token_hex(12)}, "en", b"x" * 32)
        with pytest.raises(Forbidden):
            answers.submit(self.db, self.person[_another(name)], {**sent, "submission_id": secrets.token_hex(12)}, "en", b"x" * 32)

    def undo(self, name: str) -> None:
        own = [key for key, (who, _, _) in self.acknowledged.items() if who == name and key not in self.withdrawn]
        if own:
            with contextlib.suppress(Clash):  # ten minutes are over
                answers.withdraw(self.db, self.acknowledged[own[-1]][1], self.person[name])
                self.withdrawn.add(own[-1])

    def leave_or_stay(self, name: str, place: int, act: str) -> None:
        if not (key := self._assignment(name, place)):
            return
        found = assignments.get(self.db, key)
        with contextlib.suppress(Clash):
            if act == "skip":
                assignments.skip(self.db, found, "other", "")
            elif act == "release":
                assignments.release(self.db, found)
            else:
                assignments.heartbeat(self.db, found, 30, 1000)

    def wait(self, share: float) -> None:
        self.clock += int(share * LEASE_MS)

    def one_person_has_an_item_once_and_one_lease(self) -> None:
        assert not self.db.all("SELECT 1 FROM assignments GROUP BY item_id, account_id HAVING count(*) > 1")
        assert not self.db.all("SELECT 1 FROM assignments a JOIN items i ON i.id = a.item_id WHERE i.author_id = a.account_id")

    def no_item_is_judged_by_more_than_wanted_unless_late(self) -> None:
        over = self.db.all(
            "SELECT i.id FROM items i JOIN assignments a ON a.item_id = i.id WHERE i.gold_kind IS NULL AND a.late = 0"
            " AND (a.state = 'submitted' OR (a.state = 'leased' AND a.lease_until >= ?)) GROUP BY i.id HAVING count(*) > i.overlap",
            self.clock,
        )
        assert not over

    def every_acknowledged_answer_is_stored_once(self) -> None:
        stored = {row.submission_id: row for row in self.db.all("SELECT submission_id, id, body_json, state FROM answers")}
        assert set(stored) == set(self.acknowledged)
        for submission, (_, key, body) in self.acknowledged.items():
            row = stored[submission]
            expected = "withdrawn" if submission in self.withdrawn else "current"
            assert (row.id, row.json("body")["choice"], row.state) == (key, body["choice"], expected)
        assert not self.db.all("SELECT 1 FROM answers WHERE state = 'current' GROUP BY assignment_id HAVING count(*) > 1")

    def no_lease_is_lost(self) -> None:
        """Whoever was handed something has it, or the log says how it ended."""
        said: dict[str, str] = {}
        for row in self.db.all(
            "SELECT kind, body_json FROM events WHERE kind IN ('assignments.insert', 'assignments.change') ORDER BY seq"
        ):
            body = row.json("body")
            said[body["id"]] = body.get("state", said.get(body["id"], ""))
        assert said == {row.id: row.state for row in self.db.all("SELECT id, state FROM assignments")}
        assert set(said) == {key for keys in self.handed_out.values() for key in keys}

    def step(self, act: str, name: str, place: int, index: int) -> None:
        acts: dict[str, Callable[[], None]] = {
            "claim": lambda: self.claim(name),
            "submit": lambda: self.submit(name, place, index, repeats=index),
            "undo": lambda: self.undo(name),
            "wait": lambda: self.wait((0.01, 0.4, 1.1)[place % 3]),
            **{each: lambda each=each: self.leave_or_stay(name, place, each) for each in ("skip", "release", "heartbeat")},  # type: ignore[misc]
        }
        acts[act]()
        self.one_person_has_an_item_once_and_one_lease()
        self.no_item_is_judged_by_more_than_wanted_unless_late()
        self.every_acknowledged_answer_is_stored_once()
        self.no_lease_is_lost()

    def close(self) -> None:
        assert problems(self.db) == []
        self.db.close()
        self.folder.cleanup()

    def _assignment(self, name: str, place: int) -> str | None:
        """One of the newest that this person was handed."""
        return next(iter(self.handed_out[name][::-1][place:]), None)

    def _body(self, key: str, index: int) -> dict[str, Any]:
        view = state.shown_state(self.db, assignments.get(self.db, key), "en")["view"]
        return {"choice": sorted(card["id"] for card in view["candidates"])[index]}

    def _fitting(self, name: str) -> list[str]:
        """Items without a known answer that this person may have now, said plainly."""
        found = []
        for item in self.db.all("SELECT * FROM items WHERE state = 'open' AND gold_kind IS NULL"):
            rows = self.db.all("SELECT * FROM assignments WHERE item_id = ?", item.id)
            has_had = any(row.account_id == self.person[name] and row.state != "released" for row in rows)
            num_taken = sum(row.state in ("submitted", "leased") for row in rows)
            if not has_had and num_taken < item.overlap and item.author_id != self.person[name]:
                found.append(item.id)
        return found


def _some(row: Row | None) -> Row:
    assert row is not None
    return row


def _another(name: str) -> str:
    return PEOPLE[(PEOPLE.index(name) + 1) % len(PEOPLE)]


ACTS = ["claim", "claim", "claim", "submit", "submit", "submit", "undo", "wait", "skip", "release", "heartbeat"]  # as often as here
STEP = st.tuples(st.sampled_from(ACTS), st.sampled_from(PEOPLE), st.integers(0, 2), st.integers(0, 1))
QUEUE = st.builds(Queue, overlap=st.integers(1, 3), num_items=st.integers(2, 5), seed=st.integers(0, 1000))


def run(queue: Queue, steps: list[tuple[str, str, int, int]]) -> None:
    for step in steps:
        queue.step(*step)
    queue.close()


@settings(max_examples=6, deadline=None, derandomize=True)
@given(queue=QUEUE, steps=st.lists(STEP, min_size=60, max_size=80))
def test_what_people_may_do_in_any_order(queue: Queue, steps: list[tuple[str, str, int, int]]) -> None:
    run(queue, steps)


@pytest.mark.long
@pytest.mark.timeout(900)
@settings(max_examples=100, deadline=None)
@given(queue=QUEUE, steps=st.lists(STEP, min_size=60, max_size=120))
def test_what_people_may_do_in_any_order_at_length(queue: Queue, steps: list[tuple[str, str, int, int]]) -> None:
    run(queue, steps)


def test_a_late_answer_that_is_given_anew_stays_late() -> None:
    """After Undo it passed for one in time, beside the answer of the person who had the item by then."""
    acts = (("claim", 1), ("release", 1), ("claim", 2), ("submit", 1), ("undo", 1), ("submit", 1))
    run(Queue(1, 1, 0), [(act, PEOPLE[person], 0, 0) for act, person in acts])
