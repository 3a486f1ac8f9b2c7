"""The log of events as the team reads it: newest first, by kind, by who did it, by what it is about."""

from __future__ import annotations

import json
from dataclasses import dataclass

from polyhead.client.annotate.storage.database import Database, Row

PAGE = 100
MOST_SHOWN = 6000  # characters of one event's body: a reply's row holds its token ids
_REFERENCES = ("project_id", "item_id", "assignment_id", "turn_id")


@dataclass(frozen=True)
class Sought:
    """An empty field asks for nothing. `about`: the id of a project, an item, an assignment or a turn; `before`: a place in the log."""

    kind: str = ""
    actor: str = ""
    about: str = ""
    before: int = 0


@dataclass(frozen=True)
class Entry:
    row: Row
    actor: str  # a pseudonym, or what acted
    body: str


def entries(db: Database, sought: Sought) -> tuple[list[Entry], int]:
    """(a page of the log, where the next page begins; 0: there is none)"""
    conditions, values = ["1"], list[str | int]()
    if sought.kind:
        conditions, values = [*conditions, "e.kind = ?"], [*values, sought.kind]
    if sought.before:
        conditions, values = [*conditions, "e.seq < ?"], [*values, sought.before]
    if sought.actor:
        conditions, values = [*conditions, "(e.actor = ? OR p.pseudonym = ?)"], [*values, sought.actor, sought.actor]
    if sought.about:
        conditions, values = [*conditions, f"? IN ({', '.join(f'e.{name}' for name in _REFERENCES)})"], [*values, sought.about]
    rows = db.all(
        "SELECT e.*, ifnull(p.pseudonym, e.actor) AS who FROM events e LEFT JOIN accounts p ON p.id = e.actor"
        f" WHERE {' AND '.join(conditions)} ORDER BY e.seq DESC LIMIT {PAGE + 1}",
        *values,
    )
    return [Entry(row, row.who, _body(row)) for row in rows[:PAGE]], rows[PAGE - 1].seq if len(rows) > PAGE else 0


def kinds(db: Database) -> list[str]:
    """All kinds of events that there are, without reading the whole log: the index leads from one to the next."""
    rows = db.all(
        "WITH RECURSIVE found (kind) AS (SELECT min(kind) FROM events UNION ALL"
        " SELECT (SELECT min(kind) FROM events WHERE kind > found.kind) FROM found WHERE found.kind IS NOT NULL)"
        " SELECT kind FROM found WHERE kind IS NOT NULL"
    )
    return [row.kind for row in rows]


def _body(row: Row) -> str:
    """JSON columns as what they hold."""
    body = {
        name: json.loads(value) if name.endswith("_json") and isinstance(value, str) else value for name, value in row.json("body").items()
    }
    text = json.dumps(body, ensure_ascii=False, indent=1)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]} …"
