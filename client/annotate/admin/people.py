"""Who works how. Pseudonyms alone: what is known of a person beside the work stays in `accounts`."""

from __future__ import annotations

from collections.abc import Sequence

from polyhead.client.annotate.problems import Clash, NotThere
from polyhead.client.annotate.storage.database import Database, Row

STATES = ("active", "paused", "disabled")  # what an admin may choose; withdrawn and erased come by other ways
_MINUTE_MS = 60_000


def people(db: Database) -> Sequence[Row]:
    """Everybody, with counts over all projects; the newest first. Each table is read once, whatever the number of people."""
    return db.all(_PEOPLE)


def apart(db: Database, state: str) -> dict[str, list[str]]:
    """Account -> slugs of projects that it waits in (`paused`), or has left (`opted_out`)."""
    found: dict[str, list[str]] = {}
    query = "SELECT q.account_id, p.slug FROM qualifications q JOIN projects p ON p.id = q.project_id WHERE q.state = ? ORDER BY p.slug"
    for row in db.all(query, state):
        found.setdefault(row.account_id, []).append(row.slug)
    return found


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
        "SELECT hex(token_sha256) AS key, role, projects_json, max_uses, uses, expires_at, created_by FROM invites"
        " WHERE uses < max_uses AND expires_at > ? AND revoked_at IS NULL ORDER BY created_at DESC",
        db.now(),
    )


def revoke_invite(db: Database, key: str, by: str) -> None:
    with db.transaction():
        if not db.execute("UPDATE invites SET revoked_at = ? WHERE hex(token_sha256) = ? AND revoked_at IS NULL", db.now(), key):
            raise NotThere("no such invite", field="invite")
        db.event("invites.revoked", by, {}, {})


_PEOPLE = """
WITH
  work AS (SELECT account_id, count(*) AS assignments, sum(active_ms) / 60000 AS minutes, sum(state = 'skipped') AS skipped,
    sum(late) AS late, max(leased_at) AS leased_at FROM assignments GROUP BY 1),
  said AS (SELECT a.account_id, count(*) AS answers, sum(ifnull(json_extract(n.body_json, '$.none_good'), 0)) AS none_good,
    max(n.received_at) AS received_at FROM answers n JOIN assignments a ON a.id = n.assignment_id WHERE n.state = 'current' GROUP BY 1),
  known AS (SELECT a.account_id, count(*) AS gold, sum(g.is_passed) AS gold_passed FROM gold_results g JOIN answers n ON n.id = g.answer_id
    JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id
    WHERE n.state = 'current' AND i.gold_kind != 'training' GROUP BY 1),  -- training is for learning
  wrote AS (SELECT a.account_id, sum(t.pasted_chars) AS pasted, sum(length(t.user_text)) AS typed FROM turns t
    JOIN dialogues d ON d.id = t.dialogue_id JOIN assignments a ON a.id = d.assignment_id WHERE t.user_source = 'annotator' GROUP BY 1),
  here AS (SELECT account_id, max(seen_at) AS seen_at FROM sessions GROUP BY 1)
SELECT p.id, p.pseudonym, p.role, p.state, p.projects_json, ifnull(answers, 0) AS answers, ifnull(minutes, 0) AS minutes,
  ifnull(assignments, 0) AS assignments, ifnull(skipped, 0) AS skipped,
  ifnull(late, 0) AS late, ifnull(none_good, 0) AS none_good, ifnull(gold, 0) AS gold,
  ifnull(gold_passed, 0) AS gold_passed, ifnull(pasted, 0) AS pasted, ifnull(typed, 0) AS typed,
  nullif(max(ifnull(seen_at, 0), ifnull(received_at, 0), ifnull(leased_at, 0)), 0) AS seen_at  -- sessions end; what was done stays
FROM accounts p LEFT JOIN work ON work.account_id = p.id LEFT JOIN said ON said.account_id = p.id LEFT JOIN known ON known.account_id = p.id
  LEFT JOIN wrote ON wrote.account_id = p.id LEFT JOIN here ON here.account_id = p.id
ORDER BY p.created_at DESC, p.id"""
