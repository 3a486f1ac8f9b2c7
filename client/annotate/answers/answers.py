"""Stores answers. What was submitted is never refused for being late, only for identity: erased, voided, answered already.

An answer carries an id that its page made, so that sending it again is harmless: the same body gets the first result.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from polyhead.client.annotate.items import assignments, gold
from polyhead.client.annotate.people import pausing, warning
from polyhead.client.annotate.problems import Clash, Forbidden, Invalid
from polyhead.client.annotate.projects.bodies import Shown, check_body
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.projects.projects import OpenProject, project_of_item
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.replies.candidates import candidate_of_text
from polyhead.client.annotate.storage.database import Database, Row, new_id, sha256, to_json

UNDO_MS = 10 * 60_000
_SUBMISSION = re.compile(r"[A-Za-z0-9-]{16,64}")


@dataclass(frozen=True)
class Stored:
    """Where an answer has gone. `is_over`: its assignment has all of its answers."""

    answer_id: str
    is_over: bool
    assignment_id: str


def submit(db: Database, person_id: str, given: dict[str, Any], locale: str, catalog_sha256: bytes) -> Stored:
    """Check and store one answer, durable when this returns. Clash, Forbidden or Invalid say why not."""
    submission = given.get("submission_id")
    if not isinstance(submission, str) or not _SUBMISSION.fullmatch(submission):
        raise Invalid("must be 16 to 64 letters, digits or -", field="submission_id")
    with db.transaction():
        assignment = assignments.own(db, str(given.get("assignment_id")), person_id)
        project = project_of_item(db, assignment.item_id)
        turn_id = given.get("turn_id") or None
        earlier = db.one("SELECT * FROM answers WHERE submission_id = ?", submission)
        if earlier is None:
            _check_open(db, assignment, turn_id)
        shown, view = _shown(db, assignment, project, turn_id)
        body = check_body(project.config, given.get("body"), shown)
        if earlier is not None:
            return _repeated(db, earlier, assignment, body)
        answer = _insert(db, submission, assignment, project, turn_id, view, body, given, locale, catalog_sha256)
        _store_text(db, body, project, assignment, answer)
        is_over = _is_over(db, assignment, project, turn_id, body)
        if gold.judge(db, answer, assignment, project, body):
            pausing.check(db, person_id, project)
        if turn_id and project.config.queue.replay_share and random.SystemRandom().random() < project.config.queue.replay_share:
            _make_replay(db, assignment, turn_id)
        if is_over:
            assignments.finish(db, assignment)
        return Stored(answer, is_over, assignment.id)


def withdraw(db: Database, answer_id: str, person_id: str) -> Row:
    """Undo, within ten minutes and while nothing depends on it. Returns the assignment, open again, its draft the old body."""
    with db.transaction():
        answer = db.one(
            "SELECT n.*, a.account_id FROM answers n JOIN assignments a ON a.id = n.assignment_id WHERE n.id = ? AND a.account_id = ?",
            answer_id,
            person_id,
        )
        if answer is None:
            raise Forbidden("not an answer of this person", field="answer_id")
        if answer.state != "current" or db.now() - answer.received_at > UNDO_MS or warning.was_shown(db, answer.id):
            raise Clash("the answer can no longer be taken back", code="UNDO_OVER")
        assignment = assignments.get(db, answer.assignment_id)
        _drop_later_turns(db, assignment, answer.turn_id)
        db.change("answers", answer.id, {"state": "withdrawn", "state_reason": "undo"}, person_id)
        assignments.lease_again(db, assignment, project_of_item(db, assignment.item_id).config.queue.lease_min)
        draft = {"answer": {"turn_id": answer.turn_id, "body": answer.json("body")}}
        db.execute("UPDATE assignments SET draft_json = ?, draft_rev = draft_rev + 1 WHERE id = ?", to_json(draft), assignment.id)
        return assignments.get(db, assignment.id)


def last_of(db: Database, person_id: str, count: int = 10) -> list[Row]:
    """This person's newest answers, newest first."""
    return db.all(
        "SELECT n.*, p.slug FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id"
        " JOIN rounds r ON r.id = i.round_id JOIN projects p ON p.id = r.project_id"
        " WHERE a.account_id = ? AND n.state = 'current' ORDER BY n.received_at DESC LIMIT ?",
        person_id, count,
    )  # fmt: skip


def _shown(db: Database, assignment: Row, project: OpenProject, turn_id: str | None) -> tuple[Shown, str | None]:
    """What the answer is about, and the view of it."""
    turns = dialogues.turns_of(db, assignment)
    if turn_id is not None and all(turn.id != turn_id or turn.state != "ready" for turn in turns):
        raise Invalid("is not a turn of this assignment that has its replies", field="turn_id")
    if project.config.kind is Kind.PROBE:
        return Shown(turn_ids=[turn.id for turn in turns if turn.state == "ready"]), None
    if project.is_live and project.config.kind.shows_candidates and turn_id is None and not _is_stored(db, assignment):
        raise Invalid("is missing", field="turn_id")
    view = dialogues.view_of(db, assignment.id, turn_id)
    if view is None:
        return Shown(), None
    slots = dialogues.slots_of(db, view.id)
    ids = [row.id for row in slots]
    return Shown(ids, {row.id: ids[row.alias_of] for row in slots if row.alias_of is not None}), view.id


def _is_stored(db: Database, assignment: Row) -> bool:
    """Whether the item brings its replies, as replays and gold items do in live projects."""
    item = db.one("SELECT content_json FROM items WHERE id = ?", assignment.item_id)
    assert item is not None
    return dialogues.brings_replies(item.json("content"))


def _repeated(db: Database, earlier: Row, assignment: Row, body: dict[str, Any]) -> Stored:
    if earlier.assignment_id != assignment.id or earlier.body_sha256 != sha256(to_json(body)):
        raise Clash("this submission_id stands for another answer", code="OTHER_BODY")
    return Stored(earlier.id, assignment.state == "submitted", assignment.id)


def _check_open(db: Database, assignment: Row, turn_id: str | None) -> None:
    if assignment.state in ("voided", "skipped"):
        raise Clash(f"the assignment is {assignment.state}", code="VOIDED")
    query = "SELECT 1 FROM answers WHERE assignment_id = ? AND ifnull(turn_id, '') = ? AND state = 'current'"
    if assignment.state == "submitted" or db.one(query, assignment.id, turn_id or ""):
        raise Clash("there is an answer already", code="ALREADY_ANSWERED")


def _insert(
    db: Database, submission: str, assignment: Row, project: OpenProject, turn_id: str | None, view: str | None, body: dict[str, Any],
    given: dict[str, Any], locale: str, catalog_sha256: bytes,
) -> str:  # fmt: skip
    text, answer, timing = to_json(body), new_id(), given.get("timing")
    times = {name: _time(timing, name) for name in ("shown_at", "first_input_at", "client_submitted_at")}
    row = {
        "id": answer, "submission_id": submission, "assignment_id": assignment.id, "turn_id": turn_id, "view_id": view,
        "kind": project.config.kind.value, "body_json": text, "body_sha256": sha256(text), "polarity": project.config.answer.polarity.value,
        "project_version": project.version, "locale": locale, "catalog_sha256": catalog_sha256, "client_json": _client(given.get("client")),
        **times, "received_at": db.now(), "active_ms": _time(timing, "active_ms") or 0, "late": int(_is_late(db, assignment, turn_id)),
    }  # fmt: skip
    db.insert("answers", row, assignment.account_id)
    if row["late"]:
        db.change("assignments", assignment.id, {"late": 1}, assignment.account_id)
    db.execute(
        "UPDATE assignments SET draft_json = NULL, draft_rev = draft_rev + 1, active_ms = max(active_ms, ?) WHERE id = ?",
        min(row["active_ms"], assignments.MAX_LEASE_MS), assignment.id,
    )  # fmt: skip
    return answer


def _is_late(db: Database, assignment: Row, turn_id: str | None) -> bool:
    """The lease is over; or the answer stands in place of a late one, though Undo has leased the assignment again."""
    earlier = "SELECT 1 FROM answers WHERE assignment_id = ? AND ifnull(turn_id, '') = ? AND late = 1"
    is_over = assignment.state != "leased" or assignment.lease_until < db.now()
    return is_over or db.one(earlier, assignment.id, turn_id or "") is not None


def _store_text(db: Database, body: dict[str, Any], project: OpenProject, assignment: Row, answer: str) -> None:
    """A reply that a person wrote is a candidate of its own."""
    if not project.config.kind.is_writing:
        return
    origin = "edit" if project.config.kind is Kind.EDIT else "human"
    row = candidate_of_text(body["text"], origin=origin, now=db.now(), item_id=assignment.item_id, account_id=assignment.account_id)
    db.insert("candidates", {**row, "replaces_id": body.get("candidate")}, assignment.account_id)


def _is_over(db: Database, assignment: Row, project: OpenProject, turn_id: str | None, body: dict[str, Any]) -> bool:
    if turn_id is None:
        return True
    turns = dialogues.turns_of(db, assignment)
    ends = body.get("none_good") and body.get("least_bad") is None and project.config.kind is Kind.CHOOSE
    return bool(ends) or len(turns) >= dialogues.num_turns(db, assignment, project.config)


def _make_replay(db: Database, assignment: Row, turn_id: str) -> None:
    """The turn, for another person to judge as well: agreement on live work is measured on these. Once a turn, whoever undoes what."""
    if db.one("SELECT 1 FROM items WHERE origin_turn_id = ?", turn_id) is not None:
        return
    turn = db.one("SELECT * FROM turns WHERE id = ?", turn_id)
    view = dialogues.view_of(db, assignment.id, turn_id)
    item = db.one("SELECT * FROM items WHERE id = ?", assignment.item_id)
    assert turn is not None
    assert view is not None
    assert item is not None
    content = {"messages": turn.json("messages"), "candidates": sorted(row.id for row in dialogues.slots_of(db, view.id))}
    content |= {name: item.json("content")[name] for name in ("evidence",) if name in item.json("content")}
    row = {
        "id": new_id(), "round_id": item.round_id, "source": "replay", "origin_turn_id": turn_id, "author_id": assignment.account_id,
        "lang": "", "content_json": to_json(content), "content_sha256": sha256(to_json(content)), "overlap": 1, "created_at": db.now(),
    }  # fmt: skip
    db.insert("items", row)


def _drop_later_turns(db: Database, assignment: Row, turn_id: str | None) -> None:
    """A turn that was begun with this answer is abandoned; once that is answered, this answer stays."""
    turns = dialogues.turns_of(db, assignment)
    number = next((turn.number for turn in turns if turn.id == turn_id), None)
    for turn in turns if number is not None else []:
        if turn.number <= number:
            continue
        if db.one("SELECT 1 FROM answers WHERE turn_id = ? AND state = 'current'", turn.id):
            raise Clash("the next turn is answered already", code="UNDO_OVER")
        db.change("turns", turn.id, {"state": "abandoned", "ended_at": db.now()}, assignment.account_id)


def _time(timing: Any, name: str) -> int | None:
    value = timing.get(name) if isinstance(timing, dict) else None
    return value if type(value) is int and 0 <= value < 1 << 53 else None


def _client(client: Any) -> str:
    """Viewport and input device: nothing that tells one person from another."""
    known = {"width": int, "height": int, "input": str}
    kept = {name: client[name] for name, kind in known.items() if isinstance(client, dict) and type(client.get(name)) is kind}
    return to_json({name: value[:16] if isinstance(value, str) else value for name, value in kept.items()})
