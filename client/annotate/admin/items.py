"""Items as the team sees them: found by what they are and how far they are, one with all that was said about it, and changes of one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyhead.client.annotate.items.gold import what_is_wrong
from polyhead.client.annotate.items.storing import IS_THERE
from polyhead.client.annotate.problems import Invalid, NotThere
from polyhead.client.annotate.projects.config import Kind, ProjectConfig
from polyhead.client.annotate.projects.projects import project_of_item
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.storage.database import Database, Row, to_json

PAGE = 50
STATES = ("open", "under_way", "complete", "retired")
SOURCES = ("import", "annotator", "replay", "gold", "attention", "training")
GOLD_KINDS = ("gold", "attention", "training")
LETTERS = "ABCDEFGHI"
MOST_PRIORITY, MOST_OVERLAP = 1_000_000, 100


@dataclass(frozen=True)
class Sought:
    """What is looked for; an empty field asks for nothing. `before`: the place of the last item of the page before."""

    round_number: int = 0
    state: str = ""
    source: str = ""
    text: str = ""
    before: int = 0


@dataclass(frozen=True)
class Line:
    """One item in the list."""

    row: Row
    state: str
    preview: str


@dataclass(frozen=True)
class Looked:
    """One item and all that was done about it."""

    item: Row
    state: str
    config: ProjectConfig
    messages: list[dict[str, str]]
    rule: dict[str, str] | None
    evidence: list[dict[str, str]]  # cards beside the item
    user_turns: list[str]  # what the user says after the first message
    replies: list[tuple[str, Row]]  # letter and reply
    gold: str  # the expected answer as JSON
    work: list[Work]


@dataclass(frozen=True)
class Work:
    """What one person has done about an item."""

    assignment: Row
    turns: list[Said]
    answers: list[tuple[Row, str]]  # answer and what it says, replies by their letters


@dataclass(frozen=True)
class Said:
    """One turn of a live dialogue."""

    turn: Row
    replies: list[tuple[str, Row]]  # letter, by the order shown, and reply
    next_id: str  # the reply that the dialogue goes on with


def items(db: Database, project_id: str, sought: Sought) -> tuple[list[Line], int]:
    """(a page of items, the newest first; where the next page begins, 0: there is none)"""
    conditions, values = _conditions(sought)
    rows = db.all(
        f"SELECT * FROM ({_LINES} AND {' AND '.join(conditions)}) ORDER BY place DESC LIMIT {PAGE + 1}",
        project_id, *values,
    )  # fmt: skip
    lines = [Line(row, _state(row), _preview(db, row)) for row in rows[:PAGE]]
    return lines, rows[PAGE - 1].place if len(rows) > PAGE else 0


def find_item(db: Database, project_id: str, item_id: str) -> Row:
    """NotThere for an item of another project, too."""
    found = db.one(f"{_LINES} AND i.id = ?", project_id, item_id)
    if found is None:
        raise NotThere("no such item", field="item")
    return found


def look(db: Database, item: Row) -> Looked:
    content, gold = item.json("content"), item.json("gold")
    replies = list(zip(LETTERS, dialogues.stored_replies(db, item.id, content), strict=False)) if dialogues.brings_replies(content) else []
    messages = [*content.get("messages", []), *([{"role": "user", "content": content["user"]}] if content.get("user") else [])]
    work = [_work(db, row, replies) for row in db.all(_ASSIGNMENTS, item.id)]
    expected = {name: value for name, value in gold.items() if name != "replies"} if gold else {}
    config = project_of_item(db, item.id).config
    evidence, following, known = content.get("evidence", []), content.get("user_turns", []), to_json(expected) if expected else ""
    return Looked(item, _state(item), config, messages, content.get("rule"), evidence, following, replies, known, work)


def set_state(db: Database, item: Row, state: str, by: str) -> None:
    """`retired`: handed out no more. What people have before them may be finished."""
    if state not in ("open", "retired"):
        raise Invalid("must be open or retired", field="state")
    with db.transaction():
        if item.state != state:
            db.change("items", item.id, {"state": state}, by)


def set_numbers(db: Database, item: Row, given: Mapping[str, Any], by: str) -> None:
    """Priority, and how many people are to judge it."""
    changes = {
        "priority": _whole(given, "priority", -MOST_PRIORITY, MOST_PRIORITY),
        "overlap": _whole(given, "overlap", 1, MOST_OVERLAP),
    }
    with db.transaction():
        db.change("items", item.id, changes, by)


def set_gold(db: Database, item: Row, kind: str, text: str, by: str) -> None:
    """The expected answer as JSON, its replies by index; kind "": the item has none. Invalid says what is wrong in it."""
    changes: dict[str, Any] = {"gold_kind": None, "gold_json": None}
    if kind:
        replies = [row.text for row in dialogues.stored_replies(db, item.id, item.json("content"))]
        changes = {"gold_kind": kind, "gold_json": to_json({**_expected(db, item, kind, text, replies), "replies": replies})}
    with db.transaction():
        db.change("items", item.id, changes, by)


def in_letters(value: Any, letters: Mapping[str, str]) -> Any:
    """An answer's body with letters where it names replies by their ids."""
    if isinstance(value, dict):
        return {letters.get(key, key): in_letters(each, letters) for key, each in value.items()}
    if isinstance(value, list):
        return [in_letters(each, letters) for each in value]
    return letters.get(value, value) if isinstance(value, str) else value


def _expected(db: Database, item: Row, kind: str, text: str, replies: Sequence[str]) -> dict[str, Any]:
    if kind not in GOLD_KINDS:
        raise Invalid(f"must be one of {', '.join(GOLD_KINDS)}", field="gold_kind")
    if item.source != "import":
        raise Invalid("only an imported item can have a known answer", field="gold")
    try:
        expected = json.loads(text)
    except (ValueError, RecursionError):
        raise Invalid("the expected answer is not JSON", field="gold") from None
    if not isinstance(expected, dict):
        raise Invalid('the expected answer must be an object, as {"choice": 0}', field="gold")
    config = project_of_item(db, item.id).config
    if (config.kind.shows_candidates or config.kind is Kind.EDIT) and len(set(replies)) != len(replies):
        raise Invalid("the replies of an item with a known answer must differ", field="gold")
    if wrong := what_is_wrong(config, expected, len(replies)):
        raise Invalid(wrong, field="gold")
    return expected


def _whole(given: Mapping[str, Any], name: str, least: int, most: int) -> int:
    text = str(given.get(name, ""))
    try:
        number = int(text)
    except ValueError:
        number = most + 1
    if not least <= number <= most:
        raise Invalid(f"{name} must be a whole number, {least} to {most}: {text[:20]!r}", field=name)
    return number


def _conditions(sought: Sought) -> tuple[list[str], list[Any]]:
    """What a row of the list must be, as SQL, and the values in it."""
    found: list[tuple[str, list[Any]]] = [("1", [])]
    if sought.round_number:
        found.append(("r.number = ?", [sought.round_number]))
    if sought.before:
        found.append(("i.rowid < ?", [sought.before]))
    if sought.source in SOURCES:
        found.append(("ifnull(i.gold_kind, i.source) = ?", [sought.source]))
    if sought.text:
        found.append((f"({' OR '.join(_TEXTS)})", [sought.text] * len(_TEXTS)))
    if sought.state in STATES:
        found.append((_IS[sought.state], []))
    return [condition for condition, _ in found], [value for _, values in found for value in values]


def _state(row: Row) -> str:
    if row.state == "retired":
        return "retired"
    return "complete" if row.submitted >= row.overlap else "under_way" if row.leased else "open"


def _preview(db: Database, row: Row) -> str:
    """The user's last message, or the first that was written in a live dialogue."""
    content = row.json("content")
    said = [content["user"]] if content.get("user") else [each["content"] for each in content.get("messages", []) if each["role"] == "user"]
    if said:
        return str(said[-1])
    query = "SELECT t.user_text FROM turns t JOIN dialogues d ON d.id = t.dialogue_id JOIN assignments a ON a.id = d.assignment_id"
    return str(db.value(f"{query} WHERE a.item_id = ? ORDER BY t.number LIMIT 1", row.id) or "")


def _work(db: Database, assignment: Row, replies: Sequence[tuple[str, Row]]) -> Work:
    turns = [_said(db, turn) for turn in dialogues.turns_of(db, assignment)]
    letters = {row.id: letter for letter, row in [*replies, *(each for said in turns for each in said.replies)]}
    rows = db.all("SELECT * FROM answers WHERE assignment_id = ? ORDER BY received_at, id", assignment.id)
    answers = [(row, json.dumps(in_letters(_told(row.json("body")), letters), ensure_ascii=False)) for row in rows]
    return Work(assignment, turns, answers)


def _said(db: Database, turn: Row) -> Said:
    view = db.one("SELECT id FROM views WHERE turn_id = ?", turn.id)
    chosen = dialogues.continued_with(db, turn)
    slots = dialogues.slots_of(db, view.id) if view else []
    return Said(turn, list(zip(LETTERS, slots, strict=False)), chosen.id if chosen else "")


def _told(body: dict[str, Any]) -> dict[str, Any]:
    """What an answer says: without what is empty in it."""
    return {name: value for name, value in body.items() if value not in (None, "", [], False)}


_NUM = "(SELECT count(*) FROM assignments a WHERE a.item_id = i.id AND a.state = '{}')"
_LINES = f"""SELECT i.rowid AS place, i.*, r.number AS round_number, {_NUM.format("submitted")} AS submitted,
    {_NUM.format("leased")} AS leased, {_NUM.format("skipped")} AS skipped
    FROM items i JOIN rounds r ON r.id = i.round_id WHERE r.project_id = ? AND {IS_THERE}"""
_IS = {
    "retired": "i.state = 'retired'",
    "complete": f"i.state = 'open' AND {_NUM.format('submitted')} >= i.overlap",
    "under_way": f"i.state = 'open' AND {_NUM.format('submitted')} < i.overlap AND {_NUM.format('leased')} > 0",
    "open": f"i.state = 'open' AND {_NUM.format('submitted')} < i.overlap AND {_NUM.format('leased')} = 0",
}
_TEXTS = (  # where a text may stand, and where an id may
    "i.external_id = ?",
    "i.id = ?",
    "instr(lower(i.content_json), lower(?)) > 0",
    "EXISTS (SELECT 1 FROM candidates c WHERE c.item_id = i.id AND instr(lower(c.text), lower(?)) > 0)",
    "EXISTS (SELECT 1 FROM assignments a JOIN dialogues d ON d.assignment_id = a.id JOIN turns t ON t.dialogue_id = d.id"
    " WHERE a.item_id = i.id AND instr(lower(t.user_text), lower(?)) > 0)",
)
_ASSIGNMENTS = "SELECT a.*, p.pseudonym FROM assignments a JOIN accounts p ON p.id = a.account_id WHERE a.item_id = ? ORDER BY a.leased_at"
