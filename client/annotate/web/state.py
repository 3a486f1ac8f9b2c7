"""What a browser of an annotator may see of an assignment. Of a reply: its id, slot, text, evidence, and whether it was cut off.

No head, version, generation, seed, score, time or order of finishing passes here.
"""

from __future__ import annotations

from typing import Any

from polyhead.client.annotate.items import assignments
from polyhead.client.annotate.projects.config import Kind, ProjectConfig, UserSource
from polyhead.client.annotate.projects.projects import OpenProject, project_of_item
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.storage.database import Database, Row

LETTERS = "ABCDEFGHI"


def shown_project(project: OpenProject, locale: str) -> dict[str, Any]:
    """Of the configuration, what the page needs."""
    config = project.config
    answer = config.answer
    return {
        "slug": config.slug, "title": config.words(config.title, locale) or config.slug, "kind": config.kind.value,
        "source": config.source.value, "reveal": config.reveal.value, "num_shown": config.num_shown,
        "polarity": answer.polarity.value, "strength": answer.strength.value, "then_rank": answer.then_rank,
        "tie": answer.tie, "none": answer.none, "after_none": answer.after_none.value, "comment": answer.comment,
        "reasons": [{"id": each, "text": config.words(answer.reason_texts.get(each, {}), locale)} for each in answer.reasons],
        "flags": [{"id": each, "text": config.words(answer.flag_texts.get(each, {}), locale)} for each in config.flag_names],
        "min_turns": config.dialogue.min_turns,
        "max_turns": config.rules.attempts if config.kind is Kind.PROBE else config.dialogue.max_turns,
        "min_chars": config.text.min_chars, "max_chars": config.text.max_chars, "sensitive": config.sensitive,
    }  # fmt: skip


def shown_state(db: Database, assignment: Row, locale: str) -> dict[str, Any]:
    """The assignment, its dialogue, and what is to be done now: `phase` is compose, generating, judge, failed or over."""
    project = project_of_item(db, assignment.item_id)
    item = db.one("SELECT * FROM items WHERE id = ?", assignment.item_id)
    assert item is not None
    content = item.json("content")
    is_stored = dialogues.brings_replies(content)
    if is_stored:
        _ensure_view(db, assignment, content)
    turns = [_turn(db, turn) for turn in dialogues.turns_of(db, assignment)]
    view = dialogues.view_of(db, assignment.id, None)
    before = [message for message in content.get("messages", []) if message["role"] != "system"]
    beside = [] if dialogues.searches(project.config, content) else content.get("evidence", [])  # those replies have it on their cards
    state = {
        "project": shown_project(project, locale),
        "assignment": {
            "id": assignment.id, "state": assignment.state, "lease_until": assignment.lease_until, "draft_rev": assignment.draft_rev,
            "draft": assignment.json("draft"),
        },
        "item": {"messages": before, "rule": content.get("rule"), "is_stored": is_stored, "evidence": beside},
        "turns": turns,
        "view": shown_view(db, view) if view is not None else None,
    }  # fmt: skip
    return {**state, "phase": phase(project.config, assignment, turns, is_stored=is_stored), "now": db.now()}


def phase(config: ProjectConfig, assignment: Row, turns: list[dict[str, Any]], *, is_stored: bool) -> str:
    """What the person is to do."""
    if assignment.state in ("submitted", "skipped", "voided"):
        return "over"
    if is_stored or config.kind in (Kind.DEMONSTRATE, Kind.EDIT, Kind.RULECHECK):
        return "judge"
    last = turns[-1] if turns else None
    if last is None:
        return "compose"
    if last["state"] != "ready":
        return {"generating": "generating", "failed": "failed"}.get(last["state"], "generating")
    if config.kind is Kind.PROBE:
        return "compose" if len(turns) < config.rules.attempts else "judge"
    return "compose" if last["answer"] else "judge"


def shown_view(db: Database, view: Row) -> dict[str, Any]:
    """Cards, in the order of their slots; those with one text are one card."""
    slots = dialogues.slots_of(db, view.id)
    cards = [
        {
            "id": row.id, "slot": row.slot,
            "letters": [LETTERS[each.slot] for each in slots if each.slot == row.slot or each.alias_of == row.slot],
            "text": row.text, "cut": row.finish_reason == "length", "evidence": _evidence(slots, row),
        }
        for row in slots
        if row.alias_of is None
    ]  # fmt: skip
    return {"view_id": view.id, "candidates": cards}


def _evidence(slots: list[Row], shown: Row) -> list[dict[str, str]]:
    """What a card's reply rests on; of replies with one text, what any of them names."""
    named = [card for each in slots if shown.slot in (each.slot, each.alias_of) for card in each.json("evidence") or []]
    return [card for index, card in enumerate(named) if card not in named[:index]]


def _turn(db: Database, turn: Row) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": turn.id,
        "number": turn.number,
        "text": turn.user_text,
        "is_own": turn.user_source == UserSource.ANNOTATOR.value,
        "state": turn.state,
        "view": None,
        "answer": None,
    }
    shown |= {"total": dialogues.num_replies(turn), "code": turn.error_code, "next": None}
    if turn.state != "ready":
        return shown
    view = db.one("SELECT * FROM views WHERE turn_id = ?", turn.id)
    assert view is not None, turn.id
    answer = db.one("SELECT id, body_json, received_at FROM answers WHERE turn_id = ? AND state = 'current'", turn.id)
    chosen = dialogues.continued_with(db, turn)
    shown["view"] = shown_view(db, view)
    shown["answer"] = {"id": answer.id, "body": answer.json("body"), "received_at": answer.received_at} if answer else None
    shown["next"] = chosen.id if chosen is not None else None
    return shown


def _ensure_view(db: Database, assignment: Row, content: dict[str, Any]) -> None:
    """The order in which this person sees an item's stored replies: drawn at the first look, then kept."""
    if dialogues.view_of(db, assignment.id, None) is not None:
        return
    found = [row.columns for row in dialogues.stored_replies(db, assignment.item_id, content)]
    dialogues.make_view(db, assignment.id, found)


def current_state(db: Database, person_id: str, project: OpenProject, locale: str) -> dict[str, Any] | None:
    """Of the open assignment, if there is one."""
    assignment = assignments.current(db, person_id, project)
    return shown_state(db, assignment, locale) if assignment is not None else None
