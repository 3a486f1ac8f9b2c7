"""Files of older versions brought to the schema of now, a step a version, when they are opened. Rows that a step changes get their events:
the tables can be made again from the log afterwards, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

ACTOR = "migration"


class Opened(Protocol):
    """What a step needs of a `Database`, which imports this file."""

    def transaction(self) -> AbstractContextManager[None]: ...
    def execute(self, statement: str, *values: Any) -> int: ...
    def value(self, query: str, *values: Any) -> Any: ...
    def all(self, query: str, *values: Any) -> Any: ...
    def change(self, table: str, key: str, changes: Mapping[str, Any], actor: str = "system") -> None: ...
    def put(self, table: str, row: Mapping[str, Any], keys: tuple[str, ...], actor: str = "system") -> None: ...


def migrate(db: Opened, newest: int) -> None:
    """All steps that the file lacks, in one transaction. Another process may do the same at the same time: the version is read inside."""
    with db.transaction():
        for version in range(version_of(db), newest):
            _STEPS[version](db)
        db.execute(f"PRAGMA user_version = {newest}")


def version_of(db: Opened) -> int:
    return int(db.value("PRAGMA user_version"))


def _to_2(db: Opened) -> None:
    """`was_paused` was a sentence in `reason`; imports were stored at once, so all that are there are done."""
    db.execute("ALTER TABLE qualifications ADD COLUMN was_paused INTEGER NOT NULL DEFAULT 0 CHECK (was_paused IN (0, 1))")
    db.execute("ALTER TABLE imports ADD COLUMN state TEXT NOT NULL DEFAULT 'done' CHECK (state IN ('running', 'done'))")
    for row in db.all("SELECT * FROM qualifications WHERE state = 'opted_out' AND reason = 'left while paused'"):
        changed = {**row.columns, "reason": "own choice", "was_paused": 1}
        db.put("qualifications", changed, ("account_id", "project_id"), ACTOR)


def _to_3(db: Opened) -> None:
    """Rounds say why they were closed; the team writes to people."""
    db.execute("ALTER TABLE rounds ADD COLUMN close_reason TEXT NOT NULL DEFAULT '' CHECK (close_reason IN ('', 'trunk'))")
    db.execute(
        "CREATE TABLE team_messages (id TEXT PRIMARY KEY, account_id TEXT NOT NULL REFERENCES accounts, text TEXT NOT NULL,"
        " created_by TEXT NOT NULL, created_at INTEGER NOT NULL, read_at INTEGER) STRICT"
    )


def _to_4(db: Opened) -> None:
    """Accounts may see some projects alone; those that are there see all."""
    db.execute("ALTER TABLE accounts ADD COLUMN projects_json TEXT NOT NULL DEFAULT '[]' CHECK (json_valid(projects_json))")


def _to_5(db: Opened) -> None:
    """Lateness was the assignment's. The log marks it right behind a late answer; without any such mark all of its answers are late. An
    assignment whose answers were all voided or erased stood for one that is done."""
    db.execute("ALTER TABLE answers ADD COLUMN late INTEGER NOT NULL DEFAULT 0 CHECK (late IN (0, 1))")
    marked = {row.id for row in db.all(_MARKED_LATE)}
    late = db.all("SELECT n.id, n.assignment_id, n.turn_id FROM answers n JOIN assignments a ON a.id = n.assignment_id WHERE a.late = 1")
    turns = {(row.assignment_id, row.turn_id) for row in late if row.id in marked}  # what was given anew after Undo is as late
    assignments = {assignment for assignment, _ in turns}
    for row in late:
        if (row.assignment_id, row.turn_id) in turns or row.assignment_id not in assignments:
            db.change("answers", row.id, {"late": 1}, ACTOR)
    for row in db.all(_WITHOUT_ANSWERS):
        db.change("assignments", row.id, {"state": "voided"}, ACTOR)


_MARKED_LATE = """SELECT json_extract(e.body_json, '$.id') AS id FROM events e JOIN events m ON m.seq = e.seq + 1
    WHERE e.kind = 'answers.insert' AND m.kind = 'assignments.change' AND json_extract(m.body_json, '$.late') = 1
    AND json_type(m.body_json, '$.state') IS NULL"""
_WITHOUT_ANSWERS = """SELECT a.id FROM assignments a WHERE a.state = 'submitted'
    AND EXISTS (SELECT 1 FROM answers n WHERE n.assignment_id = a.id) AND NOT EXISTS (SELECT 1 FROM answers n
    WHERE n.assignment_id = a.id AND n.state = 'current' AND json_extract(n.body_json, '$.erased') IS NULL)"""
_STEPS: dict[int, Callable[[Opened], None]] = {1: _to_2, 2: _to_3, 3: _to_4, 4: _to_5}  # by the version that a step begins with
