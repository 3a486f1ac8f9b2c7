"""Who works on what. One person meets an item once; one lease a person and project; work that came late still counts.

`claim` is one transaction. For free dialogues (`source: live`, `dialogue.user: annotator`) the item is made for the person who asks.
"""

from __future__ import annotations

import json
import random
from typing import Any

from polyhead.client.annotate.items.storing import IS_THERE
from polyhead.client.annotate.problems import Clash, Forbidden, Invalid, NotThere
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.projects.rules import assigned_rule
from polyhead.client.annotate.storage.database import Database, Row, new_id, sha256, to_json

MAX_LEASE_MS = 4 * 3_600_000
SKIP_REASONS = ("cannot_judge", "wrong_language", "broken", "personal_data", "disturbing", "other", "technical")
SKIPS_THAT_RETIRE = 3
_AMONG = 20  # open items that one is drawn from
_REPLAY_TURN = 0.5  # how often a replay is handed out while there is one: live work goes on beside it
_MINUTE_MS = 60_000


def claim(db: Database, person_id: str, project: OpenProject, draw: random.Random | None = None) -> Row | None:
    """This person's assignment: the one that is open, or a new one. None: there is nothing left for this person."""
    with db.transaction():
        expire(db)
        live = current(db, person_id, project)
        if live is not None:
            return live
        if project.row.state != "open" or not project.round_id:
            return None
        item = _next_item(db, person_id, project, draw or random.SystemRandom())
        if item is None:
            return None
        earlier = db.one("SELECT * FROM assignments WHERE item_id = ? AND account_id = ?", item, person_id)
        if earlier is not None:  # put back by this person, for a break
            lease_again(db, earlier, project.config.queue.lease_min)
            return get(db, earlier.id)
        until = db.now() + project.config.queue.lease_min * _MINUTE_MS
        row = {"id": new_id(), "item_id": item, "account_id": person_id, "state": "leased", "leased_at": db.now(), "lease_until": until}
        db.insert("assignments", row, person_id)
        return get(db, str(row["id"]))


def reads(db: Database, person_id: str, project: OpenProject) -> bool:
    """Whether this person reads a language of the project."""
    wanted = project.config.text.languages
    return not wanted or not set(wanted).isdisjoint(json.loads(db.value("SELECT languages_json FROM accounts WHERE id = ?", person_id)))


def lease_again(db: Database, assignment: Row, lease_min: int) -> None:
    """After a break, or to change an answer: a lease from now on, which is this person's current one."""
    now = db.now()
    changes = {"state": "leased", "leased_at": now, "lease_until": now + lease_min * _MINUTE_MS, "ended_at": None}
    db.change("assignments", assignment.id, changes, assignment.account_id)


def expire(db: Database) -> None:
    """Leases whose time is over free their item. What was written stays, and may still be submitted."""
    for row in db.all("SELECT id FROM assignments WHERE state = 'leased' AND lease_until < ?", db.now()):
        db.change("assignments", row.id, {"state": "expired", "ended_at": db.now(), "reason": "lease"})


def current(db: Database, person_id: str, project: OpenProject) -> Row | None:
    """The open lease of this person in this project."""
    return db.one(
        "SELECT a.* FROM assignments a JOIN items i ON i.id = a.item_id JOIN rounds r ON r.id = i.round_id"
        " WHERE a.account_id = ? AND a.state = 'leased' AND r.project_id = ? ORDER BY a.leased_at DESC",
        person_id, project.row.id,
    )  # fmt: skip


def get(db: Database, assignment_id: str) -> Row:
    found = db.one("SELECT * FROM assignments WHERE id = ?", assignment_id)
    if found is None:
        raise NotThere("no such assignment", field="assignment_id")
    return found


def own(db: Database, assignment_id: str, person_id: str) -> Row:
    """An assignment of this person. Forbidden for another one's, and for one that is not there: nobody learns which ids exist."""
    found = db.one("SELECT * FROM assignments WHERE id = ? AND account_id = ?", assignment_id, person_id)
    if found is None:
        raise Forbidden("not an assignment of this person", field="assignment_id")
    return found


def heartbeat(db: Database, assignment: Row, lease_min: int, active_ms: int) -> int:
    """Somebody is at it: the lease is longer. Returns its end."""
    if not 0 <= active_ms <= MAX_LEASE_MS:
        raise Invalid(f"must lie between 0 and {MAX_LEASE_MS}", field="active_ms")
    until = min(db.now() + lease_min * _MINUTE_MS, assignment.leased_at + MAX_LEASE_MS)
    until = max(until, assignment.lease_until)
    db.execute(
        "UPDATE assignments SET active_ms = max(active_ms, ?), lease_until = CASE state WHEN 'leased' THEN ? ELSE lease_until END"
        " WHERE id = ?",
        active_ms, until, assignment.id,
    )  # fmt: skip
    return int(until)


def save_draft(db: Database, assignment: Row, rev: int, draft: Any) -> int:
    """The new revision. Clash if the draft was changed elsewhere since revision `rev`."""
    changed = db.execute(
        "UPDATE assignments SET draft_json = ?, draft_rev = draft_rev + 1 WHERE id = ? AND draft_rev = ?",
        to_json(draft),
        assignment.id,
        rev,
    )
    if not changed:
        raise Clash("the draft was changed elsewhere", code="DRAFT_CONFLICT")
    return rev + 1


def skip(db: Database, assignment: Row, reason: str, text: str) -> None:
    """Not this one, for this person. After three such the item waits for an admin."""
    if reason not in SKIP_REASONS:
        raise Invalid(f"must be one of {', '.join(SKIP_REASONS)}", field="reason")
    with db.transaction():
        if assignment.state == "skipped":
            return
        if assignment.state not in ("leased", "expired"):
            raise Clash(f"the assignment is {assignment.state}", code="ALREADY_ANSWERED")
        db.change("assignments", assignment.id, {"state": "skipped", "ended_at": db.now(), "reason": reason}, assignment.account_id)
        db.event("assignments.skip", assignment.account_id, {"reason": reason, "text": text[:2000]}, assignment.columns)
        num = db.value("SELECT count(*) FROM assignments WHERE item_id = ? AND state = 'skipped'", assignment.item_id)
        if num >= SKIPS_THAT_RETIRE:
            db.change("items", assignment.item_id, {"state": "retired"})


def release(db: Database, assignment: Row) -> None:
    """Put back, for a break: the same person may take it up again."""
    with db.transaction():
        if assignment.state == "leased":
            db.change("assignments", assignment.id, {"state": "released", "ended_at": db.now()}, assignment.account_id)


def finish(db: Database, assignment: Row) -> None:
    """All of its answers are there."""
    with db.transaction():  # what was late stays late, though Undo has leased it again
        late = int(assignment.late or assignment.state != "leased" or assignment.lease_until < db.now())
        changes = {"state": "submitted", "ended_at": db.now(), "late": late, "draft_json": None}
        db.change("assignments", assignment.id, changes, assignment.account_id)


def count_today(db: Database, person_id: str, project: OpenProject, since_ms: int) -> int:
    """Answers of this person in this project since then."""
    return int(
        db.value(
            "SELECT count(*) FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id"
            " JOIN rounds r ON r.id = i.round_id"
            " WHERE a.account_id = ? AND r.project_id = ? AND n.state = 'current' AND n.received_at >= ?",
            person_id, project.row.id, since_ms,
        )
    )  # fmt: skip


def _next_item(db: Database, person_id: str, project: OpenProject, draw: random.Random) -> str | None:
    config = project.config
    if _num_training(db, person_id, project) < config.queue.training:
        found = _open_items(db, person_id, project, "i.gold_kind = 'training'")
        if found:
            return found[0]
    gold = config.queue.gold_every
    if gold and _num_since_gold(db, person_id, project) >= gold - 1:
        found = _open_items(db, person_id, project, "i.gold_kind IN ('gold', 'attention')")
        if found:
            return draw.choice(found)
    if config.queue.replay_share and draw.random() < _REPLAY_TURN:
        found = _open_items(db, person_id, project, "i.source = 'replay'")
        if found:
            return draw.choice(found)
    if config.is_free:
        return _put_back(db, person_id, project) or _own_item(db, person_id, project)
    found = _open_items(db, person_id, project, "i.gold_kind IS NULL")
    return draw.choice(found) if found else None


def _open_items(db: Database, person_id: str, project: OpenProject, condition: str) -> list[str]:
    """Ids of items that this person may get, the most wanted first: priority, then the most complete."""
    languages = db.value("SELECT languages_json FROM accounts WHERE id = ?", person_id)
    rows = db.all(
        f"""SELECT i.id, (SELECT count(*) FROM assignments a WHERE a.item_id = i.id AND a.state IN ('submitted', 'leased')) AS taken
        FROM items i WHERE i.round_id = ? AND i.state = 'open' AND {IS_THERE} AND {condition} AND ifnull(i.author_id, '') != ?
        AND (i.lang = '' OR i.lang IN (SELECT value FROM json_each(?)))
        AND NOT EXISTS (SELECT 1 FROM assignments a WHERE a.item_id = i.id AND a.account_id = ? AND a.state != 'released')
        AND (i.gold_kind IS NOT NULL OR taken < i.overlap)
        ORDER BY i.priority DESC, taken DESC, i.created_at, i.id LIMIT {_AMONG}""",
        project.round_id, person_id, languages, person_id,
    )  # fmt: skip
    return [row.id for row in rows]


def _put_back(db: Database, person_id: str, project: OpenProject) -> str | None:
    found = db.value(
        "SELECT i.id FROM items i JOIN assignments a ON a.item_id = i.id"
        " WHERE i.round_id = ? AND i.source = 'annotator' AND a.account_id = ? AND a.state = 'released'",
        project.round_id, person_id,
    )  # fmt: skip
    return str(found) if found else None


def _own_item(db: Database, person_id: str, project: OpenProject) -> str:
    """A new free dialogue."""
    item = new_id()
    content = {"dialogue": item, "messages": [], **assigned_rule(db, project)}
    row = {
        "id": item, "round_id": project.round_id, "source": "annotator", "author_id": person_id, "lang": "",
        "content_json": to_json(content), "content_sha256": sha256(to_json(content)), "overlap": 1, "created_at": db.now(),
    }  # fmt: skip
    db.insert("items", row, person_id)
    return item


def training(db: Database, person_id: str, project: OpenProject) -> tuple[int, int] | None:
    """(items done, all) of the training that this person is in; None: there is none, or it is done, or no item of it is left."""
    done, total = _num_training(db, person_id, project), project.config.queue.training
    is_left = done < total and bool(_open_items(db, person_id, project, "i.gold_kind = 'training'"))
    return (done, total) if is_left else None


def _num_since_gold(db: Database, person_id: str, project: OpenProject) -> int:
    """Answered assignments since this person's last gold item, or since the beginning."""
    count = 0
    for row in _submitted(db, person_id, project, "DESC"):
        if row.gold_kind in ("gold", "attention"):
            break
        count += 1
    return count


def _num_training(db: Database, person_id: str, project: OpenProject) -> int:
    return sum(row.gold_kind == "training" for row in _submitted(db, person_id, project, "ASC"))


def _submitted(db: Database, person_id: str, project: OpenProject, order: str) -> list[Row]:
    return db.all(
        "SELECT i.gold_kind FROM assignments a JOIN items i ON i.id = a.item_id JOIN rounds r ON r.id = i.round_id"
        f" WHERE a.account_id = ? AND r.project_id = ? AND a.state = 'submitted' ORDER BY a.ended_at {order}",
        person_id, project.row.id,
    )  # fmt: skip
