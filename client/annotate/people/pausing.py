"""A pause in one project for somebody whose answers to items with known answers are too often wrong. An admin looks, and lifts it.

It never takes an open item away, and nobody gets out of it by leaving the project and coming back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from polyhead.client.annotate.problems import NotThere
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.storage.database import Database, Row

WINDOW = 20  # newest known answers that count
LIFTED = "gold.lift"


@dataclass(frozen=True)
class Paused:
    """Somebody who waits for the team."""

    account_id: str
    pseudonym: str
    project_id: str
    slug: str
    since: int
    passed: int
    total: int


def check(db: Database, person_id: str, project: OpenProject) -> None:
    """After an answer: pause this person where too few of the known answers were met."""
    queue = project.config.queue
    passed, total = recent(db, person_id, project.row.id)
    if (
        queue.gold_limit
        and total >= queue.gold_after
        and passed < queue.gold_limit * total
        and not is_paused(db, person_id, project.row.id)
    ):
        _put(db, person_id, project.row.id, "paused", f"{passed} of {total} known answers")


def recent(db: Database, person_id: str, project_id: str) -> tuple[int, int]:
    """(passed, all) of the newest known answers."""
    rows = newest(db, person_id, project_id)
    return sum(row.is_passed for row in rows), len(rows)


def newest(db: Database, person_id: str, project_id: str) -> list[Row]:
    """The last WINDOW answers to items with known answers, training left out, since a pause was lifted; newest first."""
    return db.all(
        "SELECT g.answer_id, g.is_passed, g.at FROM gold_results g JOIN answers n ON n.id = g.answer_id"
        " JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id JOIN rounds r ON r.id = i.round_id"
        " WHERE a.account_id = ? AND r.project_id = ? AND i.gold_kind IN ('gold', 'attention') AND n.state = 'current' AND g.at > ?"
        f" ORDER BY g.at DESC, g.rowid DESC LIMIT {WINDOW}",
        person_id, project_id, _lifted_at(db, person_id, project_id),
    )  # fmt: skip


def is_paused(db: Database, person_id: str, project_id: str) -> bool:
    query = "SELECT 1 FROM qualifications WHERE account_id = ? AND project_id = ? AND state = 'paused'"
    return db.one(query, person_id, project_id) is not None


def everybody_paused(db: Database) -> Sequence[Paused]:
    """In all projects, the newest first."""
    rows = db.all(
        "SELECT q.account_id, q.project_id, q.changed_at, p.pseudonym, o.slug FROM qualifications q JOIN accounts p ON p.id = q.account_id"
        " JOIN projects o ON o.id = q.project_id WHERE q.state = 'paused' AND p.state IN ('active', 'paused') ORDER BY q.changed_at DESC"
    )
    return [_paused(db, row) for row in rows]


def num_paused(db: Database) -> int:
    """In how many projects somebody waits."""
    query = "SELECT count(*) FROM qualifications q JOIN accounts p ON p.id = q.account_id WHERE q.state = 'paused'"
    return int(db.value(f"{query} AND p.state IN ('active', 'paused')"))


def lift(db: Database, account_id: str, project_id: str, by: str) -> None:
    """The person goes on; what was wrong before counts no more. NotThere for somebody who is not paused there."""
    with db.transaction():
        if not is_paused(db, account_id, project_id):
            raise NotThere("nobody is paused there", field="person")
        db.event(LIFTED, by, {"account_id": account_id}, {"project_id": project_id})
        _put(db, account_id, project_id, "qualified", "lifted", by)


def _paused(db: Database, row: Row) -> Paused:
    passed, total = recent(db, row.account_id, row.project_id)
    return Paused(row.account_id, row.pseudonym, row.project_id, row.slug, row.changed_at, passed, total)


def _lifted_at(db: Database, person_id: str, project_id: str) -> int:
    query = "SELECT max(at) FROM events WHERE kind = ? AND project_id = ? AND json_extract(body_json, '$.account_id') = ?"
    return int(db.value(query, LIFTED, project_id, person_id) or 0)


def _put(db: Database, person_id: str, project_id: str, state: str, reason: str, by: str = "system") -> None:
    row = {"account_id": person_id, "project_id": project_id, "state": state, "reason": reason, "was_paused": 0, "changed_at": db.now()}
    db.put("qualifications", row, ("account_id", "project_id"), by)
