"""What the team has written to one person: shown on the person's next page, until it is marked as read. admin/messages.py sends."""

from __future__ import annotations

from collections.abc import Sequence

from polyhead.client.annotate.problems import NotThere
from polyhead.client.annotate.storage.database import Database, Row


def unread(db: Database, account_id: str) -> Sequence[Row]:
    """What this person has not marked as read, the oldest first."""
    return db.all(
        "SELECT id, text, created_at FROM team_messages WHERE account_id = ? AND read_at IS NULL ORDER BY created_at, rowid", account_id
    )


def mark_read(db: Database, message_id: str, account_id: str) -> None:
    """Once; again changes nothing. NotThere for a message to somebody else."""
    with db.transaction():
        found = db.one("SELECT read_at FROM team_messages WHERE id = ? AND account_id = ?", message_id, account_id)
        if found is None:
            raise NotThere("no such message", field="message")
        if found.read_at is None:
            db.change("team_messages", message_id, {"read_at": db.now()}, account_id)
