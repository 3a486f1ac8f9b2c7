"""What people wanted somebody to look at, the newest first, by state and project."""

from __future__ import annotations

from dataclasses import dataclass

from polyhead.client.annotate.problems import NotThere
from polyhead.client.annotate.storage.database import Database, Row

PAGE = 50
STATES = ("open", "closed")


@dataclass(frozen=True)
class Sought:
    """An empty field asks for nothing. `before`: a place in the list."""

    state: str = ""
    slug: str = ""
    before: int = 0


def reports(db: Database, sought: Sought) -> tuple[list[Row], int]:
    """(a page of them, where the next page begins; 0: there is none)"""
    conditions, values = ["1"], list[str | int]()
    for condition, value in (("o.state = ?", sought.state), ("q.slug = ?", sought.slug), ("o.rowid < ?", sought.before)):
        if value:
            conditions, values = [*conditions, condition], [*values, value]
    rows = db.all(
        "SELECT o.rowid AS place, o.id, o.item_id, o.reason, o.text, o.state, o.created_at, p.pseudonym, c.text AS reply, c.head_name,"
        " c.head_version, q.slug FROM reports o JOIN accounts p ON p.id = o.account_id LEFT JOIN candidates c ON c.id = o.candidate_id"
        " LEFT JOIN items i ON i.id = o.item_id LEFT JOIN rounds r ON r.id = i.round_id LEFT JOIN projects q ON q.id = r.project_id"
        f" WHERE {' AND '.join(conditions)} ORDER BY o.rowid DESC LIMIT {PAGE + 1}",
        *values,
    )
    return rows[:PAGE], rows[PAGE - 1].place if len(rows) > PAGE else 0


def close_report(db: Database, report_id: str, by: str) -> None:
    with db.transaction():
        if db.one("SELECT 1 FROM reports WHERE id = ?", report_id) is None:
            raise NotThere("no such report", field="report")
        db.change("reports", report_id, {"state": "closed"}, by)
