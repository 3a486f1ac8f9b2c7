"""An adjudicator's decisions as judgements, as they were at one point of the log. The newest one of an item counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from polyhead.client.annotate.exports.judgements import Filters, Judgement, evidence_of, heads_of, is_erased, known_items, last_seq
from polyhead.client.annotate.projects import projects
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.storage.database import Database, Row, sha256


def cards_of_item(db: Database, item: Row) -> list[Row]:
    """An item's replies, one a text, in an order of this item's own: what an adjudicator sees."""
    rows = sorted(dialogues.stored_replies(db, item.id, item.json("content")), key=lambda row: sha256(f"{item.id}{row.id}"))
    first_of_text = {row.text: row for row in reversed(rows)}
    return [row for row in rows if first_of_text[row.text].id == row.id]


def decisions(db: Database, slug: str, filters: Filters, left_out: Counter[str]) -> list[Judgement]:
    """Of one project, one an item, in the order in which they were first made. What is left out is counted by its reason."""
    project = projects.find_project(db, slug)
    found: dict[str, Judgement] = {}
    until = filters.until_seq or last_seq(db)
    known = known_items(db, until) if "gold" in filters.exclude else set()
    for row, body in _bodies(db, until):
        item = db.one(_ITEM, row.item_id, project.id)
        if item is None or (filters.round_number and item.round_number != filters.round_number):
            continue
        if row.created_at < filters.since_ms:
            continue
        if item.id in known:
            left_out["gold"] += 1
            continue
        if is_erased(body, item.json("content")):
            left_out["erased"] += 1
            continue
        replies = cards_of_item(db, item)
        if "leak" in filters.exclude and any(reply.has_identity_leak for reply in replies):
            left_out["leak"] += 1
            continue
        found[item.id] = _judgement(db, row, body, item, replies, project)
    return list(found.values())


_ITEM = """SELECT i.*, r.number AS round_number, r.project_version, o.dialogue_id AS origin_dialogue_id FROM items i
    JOIN rounds r ON r.id = i.round_id LEFT JOIN turns o ON o.id = i.origin_turn_id WHERE i.id = ? AND r.project_id = ?"""


def _bodies(db: Database, until: int) -> list[tuple[Row, dict[str, Any]]]:
    """(adjudication, what it says at that point of the log), in the order of their first answers."""
    said: dict[str, dict[str, Any]] = {}
    for event in db.all("SELECT body_json FROM events WHERE kind LIKE 'adjudications.%' AND seq <= ? ORDER BY seq", until):
        change = json.loads(event.body_json)
        said[change["id"]] = json.loads(change["body_json"])
    rows = {row.id: row for row in db.all("SELECT j.*, p.pseudonym FROM adjudications j JOIN accounts p ON p.id = j.account_id")}
    return [(rows[key], body) for key, body in said.items()]


def _judgement(db: Database, row: Row, body: dict[str, Any], item: Row, replies: Sequence[Row], project: Row) -> Judgement:
    config, content = projects.config_of(db, project.id, item.project_version), item.json("content")
    about = {
        "answer": row.id, "item": item.id, "turn": item.origin_turn_id, "round": item.round_number, "annotator": row.pseudonym,
        "project_version": item.project_version, "source": "adjudication", "late": False, "order": [reply.id for reply in replies],
        "heads": heads_of(replies), **evidence_of(content, replies),
    }  # fmt: skip
    return Judgement(
        row.id, Kind(project.kind), body, config.answer.polarity.value, content.get("messages", []), {reply.id: reply for reply in replies},
        item.origin_dialogue_id or item.id, content.get("rule"), [], about, config, content.get("evidence", []),
    )  # fmt: skip
