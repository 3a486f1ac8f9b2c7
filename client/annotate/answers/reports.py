"""What people report to the team: about an item, or about one reply of it."""

from __future__ import annotations

from polyhead.client.annotate.storage.database import Database, new_id


def add(db: Database, person_id: str, item_id: str, reason: str, text: str, candidate_id: str | None = None) -> str:
    """Its id. Long texts are cut."""
    row = {
        "id": new_id(), "account_id": person_id, "item_id": item_id, "candidate_id": candidate_id, "reason": reason[:40],
        "text": text[:4000], "state": "open", "created_at": db.now(),
    }  # fmt: skip
    with db.transaction():
        db.insert("reports", row, person_id)
    return str(row["id"])
