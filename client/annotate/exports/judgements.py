"""Judgements as they were at one point of the log: what was asked, what was shown, what was answered, by whom, on which heads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import Kind, ProjectConfig
from polyhead.client.annotate.replies import dialogues, scoring
from polyhead.client.annotate.storage.database import Database, Row

EXCLUSIONS = {  # what may be left out, and what that is
    "leak": "a reply that was shown names its head",
    "late": "given after its lease was over",
    "gold": "about an item whose answer is known",
}


@dataclass(frozen=True)
class Judgement:
    """One answer and what it is about."""

    answer_id: str
    kind: Kind
    body: dict[str, Any]
    polarity: str
    messages: list[dict[str, str]]  # what the replies answer to
    candidates: dict[str, Row]  # by id, in the order shown
    dialogue: str  # rows of one dialogue stay together in a split
    rule: dict[str, str] | None
    turns: list[dict[str, Any]] = field(default_factory=list)  # of `probe`: {"id", "messages", "reply"}
    about: dict[str, Any] = field(default_factory=dict)  # where it comes from, for the keys file
    config: ProjectConfig | None = None
    evidence: list[dict[str, str]] = field(default_factory=list)  # cards that stood beside the item; a reply's own are in its row


@dataclass(frozen=True)
class Filters:
    """Which answers are taken; what is not is counted by its reason."""

    round_number: int = 0  # 0: all rounds
    until_seq: int = 0  # 0: the whole log
    exclude: tuple[str, ...] = ("leak", "gold")
    since_ms: int = 0  # received then or later
    least_agreement: float = 0.0  # share of pairs of people who say the same about a thing; 0: things judged once, too
    adjudicated: bool = False  # an adjudicator's decision in place of the answers about its item


def judgements(db: Database, slug: str, filters: Filters, left_out: Counter[str]) -> Iterator[Judgement]:
    """Of one project, in the order in which they came. What is left out is counted by its reason."""
    project = projects.find_project(db, slug)
    until = filters.until_seq or last_seq(db)
    withdrawn, known = _withdrawn(db, until), known_items(db, until)
    for row in db.all(_ANSWERS, project.id, until):
        reason = withdrawn.get(row.id) or _why_not(db, row, filters, is_known=row.item_id in known)
        if reason:
            left_out[reason] += 1
            continue
        yield _judgement(db, row, project.id, until)


def last_seq(db: Database) -> int:
    return int(db.value("SELECT coalesce(max(seq), 0) FROM events"))


_ANSWERS = """SELECT n.*, a.account_id, a.item_id, p.pseudonym, r.number AS round_number, i.content_json, i.source,
    i.origin_turn_id, e.seq, o.dialogue_id AS origin_dialogue_id
    FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN accounts p ON p.id = a.account_id JOIN items i ON i.id = a.item_id
    JOIN rounds r ON r.id = i.round_id JOIN events e ON e.kind = 'answers.insert' AND json_extract(e.body_json, '$.id') = n.id
    LEFT JOIN turns o ON o.id = i.origin_turn_id
    WHERE r.project_id = ? AND e.seq <= ? ORDER BY e.seq"""


def _withdrawn(db: Database, until: int) -> dict[str, str]:
    """Answer -> why it no longer counts, as the log says up to there."""
    rows = db.all("SELECT body_json FROM events WHERE kind = 'answers.change' AND seq <= ? ORDER BY seq", until)
    states = {body["id"]: body["state"] for body in (json.loads(row.body_json) for row in rows) if "state" in body}
    return {key: state for key, state in states.items() if state != "current"}


def known_items(db: Database, until: int) -> set[str]:
    """Ids of items whose answer was known at that point of the log: as the table says, but for what the team has changed since."""
    known = {row.id for row in db.all("SELECT id FROM items WHERE gold_kind IS NOT NULL")}
    for row in db.all(f"SELECT DISTINCT item_id {_GOLD} AND kind = 'items.change' AND seq > ?", until):
        query = f"SELECT json_extract(body_json, '$.gold_kind') {_GOLD} AND item_id = ? AND seq <= ? ORDER BY seq DESC"
        (known.add if db.value(query, row.item_id, until) else known.discard)(row.item_id)
    return known


_GOLD = "FROM events WHERE kind IN ('items.insert', 'items.change') AND json_type(body_json, '$.gold_kind') IS NOT NULL"


def _why_not(db: Database, row: Row, filters: Filters, *, is_known: bool) -> str:
    if filters.round_number and row.round_number != filters.round_number:
        return "other round"
    if row.received_at < filters.since_ms:
        return "too early"
    if "gold" in filters.exclude and is_known:
        return "gold"
    if "late" in filters.exclude and row.late:
        return "late"
    if is_erased(row.json("body"), row.json("content")):
        return "erased"
    query = "SELECT 1 FROM view_slots s JOIN candidates c ON c.id = s.candidate_id WHERE s.view_id = ? AND c.has_identity_leak = 1"
    if "leak" in filters.exclude and row.view_id and db.one(query, row.view_id):
        return "leak"
    return ""


def is_erased(body: dict[str, Any], content: dict[str, Any]) -> bool:
    """Whether what was answered is gone, or what the answer is about: its author may be another person."""
    return bool(body.get("erased") or content.get("erased"))


def _judgement(db: Database, row: Row, project_id: str, until: int) -> Judgement:
    config = projects.config_of(db, project_id, row.project_version)
    content = row.json("content")
    turn = db.one("SELECT * FROM turns WHERE id = ?", row.turn_id) if row.turn_id else None
    slots = dialogues.slots_of(db, row.view_id) if row.view_id else []
    dialogue = turn.dialogue_id if turn else row.origin_dialogue_id or row.item_id  # a replay belongs to the dialogue of its turn
    about = {
        "answer": row.id, "item": row.item_id, "turn": row.turn_id or row.origin_turn_id, "round": row.round_number,
        "annotator": row.pseudonym, "view": row.view_id, "locale": row.locale, "project_version": row.project_version,
        "source": row.source, "late": bool(row.late), "seq": row.seq, "shown_at": row.shown_at, "first_input_at": row.first_input_at,
        "order": [slot.id for slot in slots], "heads": heads_of(slots), **_user(db, row.turn_id or row.origin_turn_id),
    }  # fmt: skip
    written = _written(db, row)
    about |= evidence_of(content, slots) | _scores(db, [*slots, *written], until) | ({"reply": written[0].id} if written else {})
    messages = turn.json("messages") if turn else content.get("messages", [])
    turns = _probe_turns(db, row) if row.kind == Kind.PROBE.value else []
    candidates = {slot.id: slot for slot in slots}
    return Judgement(
        row.id, Kind(row.kind), row.json("body"), row.polarity, messages, candidates, dialogue, content.get("rule"), turns, about, config,
        content.get("evidence", []),
    )  # fmt: skip


def heads_of(replies: Iterable[Row]) -> dict[str, dict[str, Any]]:
    """What computed each reply, by the reply's id."""
    return {row.id: {"head": row.head_name, "version": row.head_version, "digest": row.digest} for row in replies}


def evidence_of(content: dict[str, Any], replies: Iterable[Row]) -> dict[str, Any]:
    """{"evidence": {"item": cards, "replies": {id: cards}}}, as far as there is any."""
    own = {row.id: row.json("evidence") for row in replies if row.evidence_json}
    found = {name: value for name, value in (("item", content.get("evidence")), ("replies", own)) if value}
    return {"evidence": found} if found else {}


def _scores(db: Database, replies: Iterable[Row], until: int) -> dict[str, Any]:
    """{"scores": {id: what the hidden heads said}}, as far as there is any at that point of the log."""
    found = {row.id: scores for row in replies if (scores := scoring.scores_of(db, row, until))}
    return {"scores": found} if found else {}


def _user(db: Database, turn_id: str | None) -> dict[str, Any]:
    """Who wrote the user's message of a turn; of a head's message which head."""
    turn = db.one("SELECT user_source, form_json FROM turns WHERE id = ?", turn_id)
    if turn is None:
        return {}
    drawn = db.one("SELECT * FROM candidates WHERE id = ?", turn.json("form").get(dialogues.USER_CANDIDATE))
    return {"user": {"source": turn.user_source, **(heads_of([drawn])[drawn.id] if drawn is not None else {})}}


def _written(db: Database, row: Row) -> list[Row]:
    """The reply that an answer is, if it is one: the log has it right behind the answer."""
    if not Kind(row.kind).is_writing:
        return []
    behind = "SELECT json_extract(body_json, '$.id') FROM events WHERE kind = 'candidates.insert' AND seq > ? ORDER BY seq LIMIT 1"
    found = db.one("SELECT * FROM candidates WHERE id = ? AND account_id = ?", db.value(behind, row.seq), row.account_id)
    return [found] if found is not None else []


def _probe_turns(db: Database, row: Row) -> list[dict[str, Any]]:
    """Those that were there when the answer came: after Undo there may be more."""
    turns = db.all(
        "SELECT t.* FROM turns t JOIN dialogues d ON d.id = t.dialogue_id"
        " WHERE d.assignment_id = ? AND t.state = 'ready' AND t.ended_at <= ? ORDER BY t.number, t.attempt",
        row.assignment_id, row.received_at,
    )  # fmt: skip
    newest = {turn.number: turn for turn in turns}
    replies = {turn.id: dialogues.continued_with(db, turn) for turn in newest.values()}
    return [
        {"id": turn.id, "messages": turn.json("messages"), "reply": reply.text} for turn in newest.values() if (reply := replies[turn.id])
    ]
