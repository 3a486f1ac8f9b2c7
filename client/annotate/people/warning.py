"""A warning before a pause: somebody whose answers differ from known ones too often is shown some of them, with what the team expects.

Between two items, never in one. What was shown can no longer be taken back and answered anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from polyhead.client.annotate.people import pausing
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.storage.database import Database

NUM_EXAMPLES = 3
SHOWN, READ = "gold.shown", "gold.read"  # events: examples were on a page; the person has gone on from it


@dataclass(frozen=True)
class Warning:
    """`passed` of the newest `total` known answers were met; `examples` are answers that were not, the newest first."""

    passed: int
    total: int
    examples: tuple[str, ...]


def due(db: Database, person_id: str, project: OpenProject) -> Warning | None:
    """After half of what a pause needs, and again after as many known answers more while it is no better."""
    queue = project.config.queue
    rows = pausing.newest(db, person_id, project.row.id)
    fresh = [row for row in rows if row.at > _last(db, READ, person_id, project)]
    passed = sum(row.is_passed for row in rows)
    differing = tuple(row.answer_id for row in fresh if not row.is_passed)
    if passed >= queue.gold_warn * len(rows) or len(fresh) < max(1, queue.gold_after // 2) or not differing:
        return None
    return Warning(passed, len(rows), differing[:NUM_EXAMPLES])


def note_shown(db: Database, person_id: str, project: OpenProject, warning: Warning) -> None:
    """The examples are on the person's screen."""
    if not all(was_shown(db, each) for each in warning.examples):
        with db.transaction():
            db.event(SHOWN, person_id, {"answers": list(warning.examples)}, {"project_id": project.row.id})


def was_shown(db: Database, answer_id: str) -> bool:
    query = "SELECT 1 FROM events e, json_each(e.body_json, '$.answers') s WHERE e.kind = ? AND s.value = ?"
    return db.one(query, SHOWN, answer_id) is not None


def note_read(db: Database, person_id: str, project: OpenProject) -> None:
    """The person goes on."""
    with db.transaction():
        db.event(READ, person_id, {}, {"project_id": project.row.id})


def _last(db: Database, kind: str, person_id: str, project: OpenProject) -> int:
    query = "SELECT max(at) FROM events WHERE kind = ? AND actor = ? AND project_id = ?"
    return int(db.value(query, kind, person_id, project.row.id) or 0)
