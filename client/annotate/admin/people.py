"""Who works how. Pseudonyms alone: what is known of a person beside the work stays in `accounts`."""

from __future__ import annotations

from collections.abc import Sequence

from polyhead.client.annotate.problems import Clash, NotThere
from polyhead.client.annotate.storage.database import Database, Row

STATES = ("active", "paused", "disabled")  # what an admin may choose; withdrawn and erased come by other ways
_MINUTE_MS = 60_000


def people(db: Database) -> Sequence[Row]:
    """Everybody, with counts over all projects; the newest first."""
    return db.all(
        "SELECT p.id, p.pseudonym, p.role, p.state, p.locale, p.created_at,"
        " (SELECT max(seen_at) FROM sessions s WHERE s.account_id = p.id) AS seen_at,"
        " (SELECT count(*) FROM answers n JOIN assignments a ON a.id = n.assignment_id"
        "  WHERE a.account_id = p.id AND n.state = 'current') AS answers,"
        " (SELECT coalesce(sum(a.active_ms), 0) FROM assignments a WHERE a.account_id = p.id) / 60000 AS minutes,"
        " (SELECT count(*) FROM assignments a WHERE a.account_id = p.id AND a.state = 'skipped') AS skipped,"
        " (SELECT count(*) FROM assignments a WHERE a.account_id = p.id AND a.late = 1) AS late,"
        " (SELECT count(*) FROM assignments a WHERE a.account_id = p.id) AS assignments,"
        " (SELECT count(*) FROM answers n JOIN assignments a ON a.id = n.assignment_id WHERE a.account_id = p.id AND n.state = 'current'"
        "  AND json_extract(n.body_json, '$.none_good')) AS none_good,"
        f" (SELECT count(*) {_GOLD}) AS gold, (SELECT coalesce(sum(g.is_passed), 0) {_GOLD}) AS gold_passed,"
        " (SELECT coalesce(sum(t.pasted_chars), 0) FROM turns t JOIN dialogues d ON d.id = t.dialogue_id"
        "  JOIN assignments a ON a.id = d.assignment_id WHERE a.account_id = p.id) AS pasted,"
        " (SELECT coalesce(sum(length(t.user_text)), 0) FROM turns t JOIN dialogues d ON d.id = t.dialogue_id"
        "  JOIN assignments a ON a.id = d.assignment_id WHERE a.account_id = p.id) AS typed"
        " FROM accounts p ORDER BY p.created_at DESC, p.id"
    )


def find_person(db: Database, account_id: str) -> Row:
    found = db.one("SELECT id, pseudonym, role, state FROM accounts WHERE id = ?", account_id)
    if found is None:
        raise NotThere("no such person", field="person")
    return found


def set_state(db: Database, account_id: str, state: str, by: str) -> None:
    """`paused`: signs in and works on nothing; `disabled`: does not sign in. An admin does not lock himself out."""
    person = find_person(db, account_id)
    if account_id == by:
        raise Clash("an admin's own account", code="OWN_ACCOUNT")
    if state not in STATES or person.state not in STATES:
        raise Clash(f"the account is {person.state}", code="STATE")
    with db.transaction():
        if person.state != state:
            db.change("accounts", account_id, {"state": state, "ended_at": db.now() if state == "disabled" else None}, by)
        if state == "disabled":
            db.execute("DELETE FROM sessions WHERE account_id = ?", account_id)


def open_invites(db: Database) -> Sequence[Row]:
    """Links that still open an account. The links themselves are not stored."""
    return db.all(
        "SELECT hex(token_sha256) AS key, role, max_uses, uses, expires_at, created_by FROM invites"
        " WHERE uses < max_uses AND expires_at > ? AND revoked_at IS NULL ORDER BY created_at DESC",
        db.now(),
    )


def revoke_invite(db: Database, key: str, by: str) -> None:
    with db.transaction():
        if not db.execute("UPDATE invites SET revoked_at = ? WHERE hex(token_sha256) = ? AND revoked_at IS NULL", db.now(), key):
            raise NotThere("no such invite", field="invite")
        db.event("invites.revoked", by, {}, {})


def reports(db: Database) -> Sequence[Row]:
    """What people wanted somebody to look at; open ones first."""
    return db.all(
        "SELECT o.id, o.item_id, o.reason, o.text, o.state, o.created_at, p.pseudonym, c.text AS reply, c.head_name, c.head_version, q.slug"
        " FROM reports o JOIN accounts p ON p.id = o.account_id LEFT JOIN candidates c ON c.id = o.candidate_id"
        " LEFT JOIN items i ON i.id = o.item_id LEFT JOIN rounds r ON r.id = i.round_id LEFT JOIN projects q ON q.id = r.project_id"
        " ORDER BY o.state != 'open', o.created_at DESC LIMIT 200"
    )


def close_report(db: Database, report_id: str, by: str) -> None:
    with db.transaction():
        if db.one("SELECT 1 FROM reports WHERE id = ?", report_id) is None:
            raise NotThere("no such report", field="report")
        db.change("reports", report_id, {"state": "closed"}, by)


_GOLD = (  # known answers of a person p; training is for learning
    "FROM gold_results g JOIN answers n ON n.id = g.answer_id JOIN assignments a ON a.id = n.assignment_id"
    " JOIN items i ON i.id = a.item_id WHERE a.account_id = p.id AND n.state = 'current' AND i.gold_kind != 'training'"
)
