"""Files that an older version has written open, and what is in them means the same."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from polyhead.client.annotate.keeping import verify
from polyhead.client.annotate.people import accounts, limits, pausing
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import read_project
from polyhead.client.annotate.storage.database import SCHEMA_VERSION, Database, DatabaseError, sha256
from tests.client.annotate.site import CHOOSE, begin

SCHEMA_1 = Path(__file__).with_name("schema_1.sql")


def old_file(path: Path) -> tuple[str, str]:
    """(account that was paused and left, account that left by its own choice), both in the project of a file of schema 1"""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.executescript(SCHEMA_1.read_text(encoding="utf-8"))
    db = Database(path, connection)
    begin(db, read_project(CHOOSE))
    project = projects.find_project(db, "helpful")
    people = []
    for reason in ("left while paused", "own choice"):
        people.append(accounts.create_account(db, "annotator", f"amber-fox-{len(people)}")[0])
        row = {"account_id": people[-1], "project_id": project.id, "state": "opted_out", "reason": reason, "changed_at": 1}
        with db.transaction():
            db.put("qualifications", row, ("account_id", "project_id"), people[-1])
    db.close()
    return people[0], people[1]


def test_a_file_of_schema_1_opens(tmp_path: Path) -> None:
    """Whoever left while paused is paused after coming back, and the tables are still what the log says."""
    paused, free = old_file(tmp_path / "a.db")
    for _ in range(2):  # the second time there is nothing to do
        db = Database.open(tmp_path / "a.db")
        assert db.value("PRAGMA user_version") == SCHEMA_VERSION
        assert db.value("SELECT count(*) FROM accounts WHERE projects_json = '[]'") == 2  # they see all, as before
        assert db.value("SELECT count(*) FROM events WHERE actor = 'migration'") == 1
        assert verify.problems(db) == []
        db.close()
    db = Database.open(tmp_path / "a.db")
    project = projects.find_project(db, "helpful")
    for person in (paused, free):
        limits.come_back(db, person, project)
    assert [pausing.is_paused(db, person, project.id) for person in (paused, free)] == [True, False]
    db.close()


def answered(db: Database, number: int, turns: tuple[bool, ...], *, state: str = "current", is_marked: bool = True) -> None:
    """An item with a conversation, as files of schema 4 have it: for each turn whether its answer was late."""
    person, item, assignment = (f"{what}-{number}" for what in ("person", "item", "assignment"))
    with db.transaction():
        known = {"pseudonym": person, "role": "annotator", "state": "active", "locale": "en", "timezone": "UTC", "languages_json": "[]"}
        db.insert("accounts", {"id": person, **known, "created_at": 1})
        row = {"id": item, "round_id": db.value("SELECT id FROM rounds"), "source": "annotator", "lang": "", "content_json": "{}"}
        db.insert("items", {**row, "content_sha256": sha256(item), "overlap": 1, "created_at": 1})
        row = {"id": assignment, "item_id": item, "account_id": person, "state": "leased", "leased_at": 1, "lease_until": 2}
        db.insert("assignments", row)
        db.insert("dialogues", {"id": f"dialogue-{number}", "assignment_id": assignment, "started_at": 1})
        for index, is_late in enumerate(turns):
            key = f"{number}-{index}"
            said = {"number": index + 1, "user_text": "", "user_source": "annotator", "messages_json": "[]", "form_json": "{}"}
            made = {"arms_json": "[]", "request_id": key, "state": "failed", "started_at": 1}
            db.insert("turns", {"id": f"turn-{key}", "dialogue_id": f"dialogue-{number}", **said, **made})
            about = {"id": key, "submission_id": key, "assignment_id": assignment, "turn_id": f"turn-{key}", "kind": "choose"}
            body = {"body_json": "{}", "body_sha256": sha256("{}"), "polarity": "better", "project_version": 1}
            sent = {"client_json": "{}", "locale": "en", "catalog_sha256": b"x", "received_at": 1, "active_ms": 0}
            db.insert("answers", {**about, **body, **sent, "state": state})
            if is_late and is_marked:
                db.change("assignments", assignment, {"late": 1})
        db.change("assignments", assignment, {"state": "submitted", "late": int(any(turns))})


def test_lateness_becomes_the_answers_own(tmp_path: Path) -> None:
    """Where the log says which answer was late, that one alone is; and what was voided passes for done no more."""
    connection = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    connection.executescript(SCHEMA_1.read_text(encoding="utf-8"))
    db = Database(tmp_path / "a.db", connection)
    begin(db, read_project(CHOOSE))
    answered(db, 0, (False, True))
    answered(db, 1, (False, False))
    answered(db, 2, (True, True), is_marked=False)
    answered(db, 3, (False,), state="voided")
    db.close()
    db = Database.open(tmp_path / "a.db")
    assert {row.id for row in db.all("SELECT id FROM answers WHERE late = 1")} == {"0-1", "2-0", "2-1"}
    assert [row.id for row in db.all("SELECT id FROM assignments WHERE state = 'voided'")] == ["assignment-3"]
    assert verify.problems(db) == []
    db.close()


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    for version, message in ((99, "a newer polyhead has written it"), (0, "not a database of polyhead annotate")):
        with sqlite3.connect(tmp_path / "a.db") as connection:
            connection.execute(f"PRAGMA user_version = {version}")
        connection.close()
        with pytest.raises(DatabaseError, match=message):
            Database.open(tmp_path / "a.db")
