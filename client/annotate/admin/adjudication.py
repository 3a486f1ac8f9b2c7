"""A second look at what people disagree about: the adjudicator answers without seeing the others' answers, then sees them and may
change the answer. Both are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from polyhead.client.annotate.exports.adjudicated import cards_of_item
from polyhead.client.annotate.exports.comparable import values_of
from polyhead.client.annotate.problems import Clash, NotThere
from polyhead.client.annotate.projects.bodies import Body, Shown, check_body
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.projects.projects import OpenProject, find_project, project_of_item
from polyhead.client.annotate.storage.database import Database, Row, new_id, to_json

JUDGED = (Kind.CHOOSE, Kind.RANK, Kind.COMPARE, Kind.RATE, Kind.RULECHECK)  # kinds in which two people answer the same question


@dataclass(frozen=True)
class Disputed:
    """An item about which answers differ."""

    item_id: str
    num_answers: int
    is_done: bool


@dataclass(frozen=True)
class Case:
    """One item as an adjudicator sees it."""

    project: OpenProject
    item: Row
    messages: list[dict[str, str]]
    rule: dict[str, str] | None
    replies: list[Row]  # one a text, in an order of this item's own
    answers: list[Row]  # pseudonym and body
    own: Row | None  # the adjudication so far
    evidence: list[dict[str, str]]  # cards beside the item


def disputed(db: Database, slug: str) -> list[Disputed]:
    """Items of a project with two current answers or more that differ, those without an adjudication first."""
    project = find_project(db, slug)
    if Kind(project.kind) not in JUDGED:
        return []
    found = []
    items = db.all(
        "SELECT i.*, (SELECT count(*) FROM adjudications j WHERE j.item_id = i.id) AS done FROM items i JOIN rounds r ON r.id = i.round_id"
        " WHERE r.project_id = ? AND i.source != 'annotator' AND i.gold_kind IS NULL AND json_extract(i.content_json, '$.erased') IS NULL"
        " ORDER BY done, i.created_at, i.id",
        project.id,
    )
    for item in items:
        answers = answers_of(db, item)
        if len(answers) > 1 and len({_says(Kind(project.kind), answer) for answer in answers}) > 1:
            found.append(Disputed(item.id, len(answers), bool(item.done)))
    return found


def answers_of(db: Database, item: Row) -> list[Row]:
    """Current answers about an item; of a replay the one about the turn that it repeats, too."""
    return db.all(
        "SELECT n.body_json, p.pseudonym, (SELECT json_group_array(s.candidate_id) FROM (SELECT candidate_id FROM view_slots"
        " WHERE view_id = n.view_id ORDER BY slot) s) AS order_json FROM answers n JOIN assignments a ON a.id = n.assignment_id"
        " JOIN accounts p ON p.id = a.account_id WHERE n.state = 'current' AND json_extract(n.body_json, '$.erased') IS NULL"
        " AND (a.item_id = ? OR (n.turn_id IS NOT NULL AND n.turn_id = ?)) ORDER BY n.received_at, n.id",
        item.id,
        item.origin_turn_id,
    )


def case(db: Database, item_id: str, account_id: str) -> Case:
    """NotThere for an item that is not disputed: the page is no way to read other items."""
    item = db.one("SELECT * FROM items WHERE id = ?", item_id)
    if item is None:
        raise NotThere("no such item", field="item")
    project, content = project_of_item(db, item_id), item.json("content")
    answers = answers_of(db, item)
    if content.get("erased"):
        raise NotThere("the item was erased", field="item")
    if len(answers) < 2:
        raise NotThere("fewer than two answers", field="item")
    own = db.one("SELECT * FROM adjudications WHERE item_id = ? AND account_id = ?", item_id, account_id)
    messages, rule, evidence = content.get("messages", []), content.get("rule"), content.get("evidence", [])
    return Case(project, item, messages, rule, cards_of_item(db, item), answers, own, evidence)


def adjudicate(db: Database, shown: Case, account_id: str, given: Any, *, is_first: bool) -> None:
    """Store the answer that is given before the others are seen, or the one after. Invalid names what is wrong in it."""
    body = to_json(check_body(shown.project.config, given, Shown([row.id for row in shown.replies])))
    if is_first != (shown.own is None):
        raise Clash("the page was old: the first answer is stored already", code="ALREADY_ANSWERED")
    with db.transaction():
        if shown.own is None:
            row = {"id": new_id(), "item_id": shown.item.id, "account_id": account_id, "body_json": body, "first_body_json": body}
            db.insert("adjudications", {**row, "created_at": db.now()}, account_id)
        else:
            db.change("adjudications", shown.own.id, {"body_json": body}, account_id)


def body_of_form(kind: Kind, form: Any, replies: Sequence[Row], config: Any) -> Body:
    """An answer as a form without scripts sends it."""
    if kind is Kind.CHOOSE:
        choice = form.get("choice")
        if choice == "none":
            return {"none_good": True, "least_bad": form.get("least_bad")}
        return {"choice": choice}
    if kind is Kind.RANK:
        return {"ranks": _ranks_of_form(form, replies)}
    if kind is Kind.RATE:
        flags = {row.id: {name: form.get(f"flag-{row.id}-{name}") == "yes" for name in config.flag_names} for row in replies}
        ratings = {row.id: {"overall": _number(form.get(f"rate-{row.id}")), "flags": flags[row.id]} for row in replies}
        return {"ratings": ratings, **({"ranks": _ranks_of_form(form, replies)} if config.answer.then_rank else {})}
    if kind is Kind.COMPARE:
        return {"position": _number(form.get("position"))}
    return {"verdict": _number(form.get("verdict"))}


def _ranks_of_form(form: Any, replies: Sequence[Row]) -> dict[str, int | None]:
    """The numbers as they were chosen, without gaps."""
    ranks = [_number(form.get(f"rank-{row.id}")) for row in replies]
    dense = {rank: place for place, rank in enumerate(sorted({each for each in ranks if each}), 1)}
    return {row.id: dense.get(rank or 0) for row, rank in zip(replies, ranks, strict=True)}


def _says(kind: Kind, answer: Row) -> str:
    order = answer.json("order") or []
    return to_json(values_of(kind, answer.json("body"), sorted(order), order))


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, str) and value.isdigit() and len(value) < 3 else None
