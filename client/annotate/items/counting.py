"""How much of the open rounds' work is done: for bars on pages of people and of the team."""

from __future__ import annotations

from dataclasses import dataclass

from polyhead.client.annotate.items.storing import IS_THERE
from polyhead.client.annotate.storage.database import Database


@dataclass(frozen=True)
class Done:
    """Judgements of an open round: so many of those that its items want. Items with known answers, and retired ones, want none."""

    done: int
    wanted: int

    @property
    def percent(self) -> int:
        """Whole, and 100 only when all is done."""
        return 100 * self.done // self.wanted


def done_by_round(db: Database) -> dict[str, Done]:
    """By round id, of all open rounds that have items which want judgements. Conversations that people begin themselves have no end."""
    rows = db.all(
        "SELECT i.round_id, sum(i.overlap) AS wanted, sum(min(i.overlap, ifnull(s.num, 0))) AS done"
        " FROM rounds r JOIN items i ON i.round_id = r.id"
        " LEFT JOIN (SELECT item_id, count(*) AS num FROM assignments WHERE state = 'submitted' GROUP BY item_id) s ON s.item_id = i.id"
        f" WHERE r.closed_at IS NULL AND i.state = 'open' AND i.source != 'annotator' AND i.gold_kind IS NULL AND {IS_THERE} GROUP BY 1"
    )
    return {row.round_id: Done(row.done, row.wanted) for row in rows}
