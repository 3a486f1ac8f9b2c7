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


_STEPS: dict[int, Callable[[Opened], None]] = {1: _to_2, 2: _to_3, 3: _to_4}  # by the version that a step begins with
