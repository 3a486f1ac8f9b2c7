"""Turns of a dialogue, and views: which replies a person was shown, in which order. The order is drawn anew for each view and stored."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from polyhead.client.annotate.problems import Clash, Invalid
from polyhead.client.annotate.projects.config import Arms, Kind, ProjectConfig, UserSource
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.storage.database import Database, Row, new_id, to_json

Messages = list[dict[str, str]]
SEARCHES = "searches"  # of a turn's form: its replies are drawn once without and once with the item's evidence
USER_CANDIDATE = "user_candidate"  # of a turn's form: the candidate that is its message of the user, where a head has drawn it
_ID = re.compile(r"[0-9a-f]{24}")


def dialogue_of(db: Database, assignment: Row) -> Row:
    """The dialogue of an assignment; it begins with the first look at it."""
    found = db.one("SELECT * FROM dialogues WHERE assignment_id = ?", assignment.id)
    if found is None:
        content = content_of(db, assignment)
        rule = content.get("rule")
        row = {"id": new_id(), "assignment_id": assignment.id, "rule_json": to_json(rule) if rule else None, "started_at": db.now()}
        with db.transaction():
            db.insert("dialogues", {**row, "rule_set": content.get("rule_set")}, assignment.account_id)
        found = db.one("SELECT * FROM dialogues WHERE assignment_id = ?", assignment.id)
        assert found is not None
    return found


def content_of(db: Database, assignment: Row) -> dict[str, Any]:
    """What the assignment's item holds."""
    item = db.one("SELECT content_json FROM items WHERE id = ?", assignment.item_id)
    assert item is not None
    return dict(item.json("content"))


def turns_of(db: Database, assignment: Row) -> list[Row]:
    """The last attempt of each turn, first to last; a turn that was taken back is not among them."""
    return db.all(
        "SELECT t.* FROM turns t JOIN dialogues d ON d.id = t.dialogue_id WHERE d.assignment_id = ? AND t.state != 'abandoned'"
        " AND t.attempt = (SELECT max(attempt) FROM turns o WHERE o.dialogue_id = t.dialogue_id AND o.number = t.number) ORDER BY t.number",
        assignment.id,
    )  # fmt: skip


def open_turns_of(db: Database, account_id: str) -> list[Row]:
    """Turns of one person whose replies are being drawn."""
    return db.all(
        "SELECT t.id FROM turns t JOIN dialogues d ON d.id = t.dialogue_id JOIN assignments a ON a.id = d.assignment_id"
        " WHERE a.account_id = ? AND t.state = 'generating'",
        account_id,
    )


def begin_turn(
    db: Database, assignment: Row, project: OpenProject, turn_id: str, text: str, *, pasted: int = 0,
    source: UserSource = UserSource.ANNOTATOR,
) -> Row:  # fmt: skip
    """A turn that waits for its replies. The same id again is the same turn: a repeated request costs nothing.
    Of the source MODEL the text is empty: it is drawn before the replies are."""
    if not _ID.fullmatch(turn_id):
        raise Invalid("must be 24 hex digits", field="client_turn_id")
    with db.transaction():
        known = db.one("SELECT t.*, d.assignment_id FROM turns t JOIN dialogues d ON d.id = t.dialogue_id WHERE t.id = ?", turn_id)
        if known is not None:
            if known.assignment_id != assignment.id or known.user_text != text:
                raise Clash("this id stands for another turn", code="OTHER_BODY", field="client_turn_id")
            return known
        earlier = turns_of(db, assignment)
        _check_may_go_on(db, assignment, project, earlier)
        if source is UserSource.ANNOTATOR:
            _check_text(text, project.config)
        return _insert_turn(db, assignment, project, turn_id, len(earlier) + 1, text, source.value, pasted)


def num_turns(db: Database, assignment: Row, config: ProjectConfig) -> int:
    """Most turns of a dialogue: as many as the project says, or as the item's script has."""
    most = config.rules.attempts if config.kind is Kind.PROBE else config.dialogue.max_turns
    script = content_of(db, assignment).get("user_turns") if config.dialogue.user is UserSource.ITEM else None
    return most if script is None else min(most, 1 + len(script))


def begin_again(db: Database, turn: Row, assignment: Row, project: OpenProject) -> Row:
    """The next attempt of a turn that failed, or that a stop of this program interrupted."""
    with db.transaction():
        if turn.state == "generating":
            db.change("turns", turn.id, {"state": "abandoned", "ended_at": db.now()})
        form = {name: value for name, value in turn.json("form").items() if name == USER_CANDIDATE}  # what was drawn stays
        return _insert_turn(db, assignment, project, new_id(), turn.number, turn.user_text, turn.user_source, turn.pasted_chars, form)


def messages_before(db: Database, assignment: Row, config: ProjectConfig, number: int) -> Messages:
    """The conversation that turn `number` answers to, without its own user message."""
    messages: Messages = [{"role": "system", "content": config.prompt.system}] if config.prompt.system else []
    messages += content_of(db, assignment).get("messages", [])
    for turn in turns_of(db, assignment):
        if turn.number >= number:
            break
        messages.append({"role": "user", "content": turn.user_text})
        parent = continued_with(db, turn)
        if parent is not None:
            messages.append({"role": "assistant", "content": parent.text})
    return messages


def continued_with(db: Database, turn: Row) -> Row | None:
    """The reply that the dialogue goes on with: the chosen one, the least bad one, or a turn's only one."""
    next_turn = db.one(
        "SELECT parent_candidate_id, state FROM turns WHERE dialogue_id = ? AND number = ? ORDER BY attempt DESC",
        turn.dialogue_id, turn.number + 1,
    )  # fmt: skip
    if next_turn is not None and next_turn.state == "abandoned":  # by undo: the attempts before it are void, too
        next_turn = None
    chosen = next_turn.parent_candidate_id if next_turn else choice_of(db, turn)
    return db.one("SELECT * FROM candidates WHERE id = ?", chosen) if chosen else None


def choice_of(db: Database, turn: Row) -> str | None:
    """The candidate that the turn's answer goes on with."""
    answer = db.one("SELECT body_json FROM answers WHERE turn_id = ? AND state = 'current'", turn.id)
    shown = [row.candidate_id for row in db.all(_SLOTS_OF_TURN, turn.id)]
    if answer is None:
        return shown[0] if len(shown) == 1 else None
    return best_of(answer.json("body"), shown)


_SLOTS_OF_TURN = "SELECT s.candidate_id FROM view_slots s JOIN views v ON v.id = s.view_id WHERE v.turn_id = ? ORDER BY s.slot"


def best_of(body: dict[str, Any], shown: Sequence[str]) -> str | None:
    """The candidate that an answer puts first, of any kind: the order of `shown` was drawn, so the first of equals is a fair draw."""
    if body.get("none_good"):
        return body.get("least_bad")
    if body.get("choice"):
        return str(body["choice"])
    if body.get("tied"):
        return next((each for each in shown if each in body["tied"]), None)
    if body.get("ranks"):
        return min(shown, key=lambda each: body["ranks"][each])
    if body.get("ratings"):
        return max(shown, key=lambda each: body["ratings"][each]["overall"])
    if "position" in body and len(shown) == 2:
        middle = {"hh8": 4.5, "stiennon9": 5.0}[body["scale"]]
        return shown[0] if (body["position"] or 0) <= middle else shown[1]
    return None


def searches(config: ProjectConfig, content: Mapping[str, Any]) -> bool:
    """Whether the replies to an item's first message are drawn with its evidence, too, as turns of a search: in a transcript format, where
    replies with and without it stand side by side."""
    stands_alone = config.kind in (Kind.COMPARE, Kind.PROBE)
    return bool(config.prompt.format and content.get("evidence") and "user" in content and not stands_alone)


def num_replies(turn: Row) -> int:
    """Replies that a turn waits for."""
    per_prompt = sum(int(arm["n"]) for arm in turn.json("arms"))
    return 2 * per_prompt if turn.json("form").get(SEARCHES) else per_prompt


def drawn_arms(arms: Arms, draw: random.Random | None = None) -> list[dict[str, Any]]:
    """Who replies in this turn, as {"head", "n"}; the order is no secret, since slots are shuffled."""
    if arms.fixed:
        return [{"head": arm.head, "n": arm.n} for arm in arms.fixed]
    heads = [arm.head for arm in arms.drawn]
    picked = (draw or random.SystemRandom()).choices(heads, [arm.weight for arm in arms.drawn], k=arms.show)
    return [{"head": head, "n": picked.count(head)} for head in dict.fromkeys(picked)]


def store_ready(
    db: Database, turn: Row, assignment_id: str, rows: Sequence[dict[str, Any]], reveal: str = "together", *, is_ordered: bool = False,
    is_rebuilt: bool = False,
) -> None:  # fmt: skip
    """All replies of a turn and the order to show them in, at once: afterwards the turn is ready, and not before.
    `is_ordered`: their order was drawn already, since the page has seen them grow. `is_rebuilt`: the context was rendered again from its
    messages, since the trunk or the tokenizer of the turn before is no longer served. Nothing is stored that nobody waits for any more."""
    with db.transaction():
        if not keeps_waiting(db, turn):
            return
        for row in rows:
            db.insert("candidates", row)
        make_view(db, assignment_id, rows, turn.id, reveal=reveal, is_ordered=is_ordered)
        changes = {"state": "ready", "ended_at": db.now(), "error_code": "", "context_rebuilt": int(is_rebuilt)}
        db.change("turns", turn.id, changes)
        if db.value("SELECT trunk_id FROM dialogues WHERE id = ?", turn.dialogue_id) is None and rows[0].get("trunk_id"):
            trunk = {name: rows[0].get(name) for name in ("trunk_id", "tokenizer_sha256")}
            db.change("dialogues", turn.dialogue_id, trunk)


def keeps_waiting(db: Database, turn: Row) -> bool:
    """Whether a turn may still get what is drawn for it; if not, it is abandoned. Another process may have erased its person meanwhile, and
    what was drawn holds that person's words."""
    query = "SELECT a.state FROM assignments a JOIN dialogues d ON d.assignment_id = a.id WHERE d.id = ?"
    if db.value("SELECT state FROM turns WHERE id = ?", turn.id) != "generating":
        return False
    if db.value(query, turn.dialogue_id) in ("leased", "expired", "released"):  # released: for a break
        return True
    db.change("turns", turn.id, {"state": "abandoned", "ended_at": db.now()})
    return False


def make_view(
    db: Database, assignment_id: str, rows: Sequence[Any], turn_id: str | None = None, *, reveal: str = "together", is_ordered: bool = False
) -> str:
    """Slots for candidates (rows with `id` and `text`) in random order. Of those with one text the first slot stands for all."""
    order = list(rows) if is_ordered else shuffled(rows)
    view, first_of_text = new_id(), dict[str, int]()
    with db.transaction():
        made = {"id": view, "assignment_id": assignment_id, "turn_id": turn_id, "reveal": reveal, "created_at": db.now()}
        db.insert("views", made)
        for slot, row in enumerate(order):
            alias = first_of_text.setdefault(row["text"], slot)
            values = {"view_id": view, "slot": slot, "candidate_id": row["id"], "alias_of": alias if alias != slot else None}
            db.insert("view_slots", values)
    return view


def shuffled(rows: Sequence[Any], draw: random.Random | None = None) -> list[Any]:
    """Every order as likely; drawn by the system's own source, so that nobody can foretell it."""
    return (draw or random.SystemRandom()).sample(list(rows), len(rows))


def brings_replies(content: dict[str, Any]) -> bool:
    """Whether an item has its replies: imported ones, or those of a turn that is judged again."""
    return bool("candidates" in content or content.get("has_replies"))


def stored_replies(db: Database, item_id: str, content: dict[str, Any]) -> list[Row]:
    """An item's replies: those of a turn that is judged again, or those that were imported with it, in the order of the file."""
    if "candidates" in content:
        found = (db.one("SELECT * FROM candidates WHERE id = ?", each) for each in content["candidates"])
        return [row for row in found if row is not None]
    return db.all("SELECT * FROM candidates WHERE item_id = ? AND origin = 'import' ORDER BY rowid", item_id)


def view_of(db: Database, assignment_id: str, turn_id: str | None) -> Row | None:
    return db.one("SELECT * FROM views WHERE assignment_id = ? AND ifnull(turn_id, '') = ?", assignment_id, turn_id or "")


def slots_of(db: Database, view_id: str) -> list[Row]:
    """Slot, alias and the candidate's row, in the order shown."""
    return db.all(
        "SELECT s.slot, s.alias_of, c.* FROM view_slots s JOIN candidates c ON c.id = s.candidate_id WHERE s.view_id = ? ORDER BY s.slot",
        view_id,
    )


def fail_turn(db: Database, turn_id: str, code: str) -> None:
    with db.transaction():
        db.change("turns", turn_id, {"state": "failed", "error_code": code, "ended_at": db.now()})


def _insert_turn(
    db: Database, assignment: Row, project: OpenProject, turn_id: str, number: int, text: str, source: str, pasted: int,
    form: Mapping[str, str] | None = None,
) -> Row:  # fmt: skip
    config, dialogue = project.config, dialogue_of(db, assignment)
    attempt = 1 + int(db.value("SELECT count(*) FROM turns WHERE dialogue_id = ? AND number = ?", dialogue.id, number))
    before = messages_before(db, assignment, config, number)
    previous = next((turn for turn in turns_of(db, assignment) if turn.number == number - 1), None)
    parent = choice_of(db, previous) if previous else None
    searching = {SEARCHES: True} if number == 1 and searches(config, content_of(db, assignment)) else {}
    said = [*before, {"role": "user", "content": text}] if text else before  # a head's message is added when it is drawn
    row = {
        "id": turn_id, "dialogue_id": dialogue.id, "number": number, "attempt": attempt, "parent_candidate_id": parent, "user_text": text,
        "user_source": source, "pasted_chars": pasted, "messages_json": to_json(said),
        "form_json": to_json({"format": config.prompt.format, **searching, **(form or {})}),
        "arms_json": to_json(_arms_of_turn(db, dialogue, config)),
        "request_id": f"annotate-{turn_id}", "state": "generating", "started_at": db.now(),
    }  # fmt: skip
    db.insert("turns", row, assignment.account_id)
    found = db.one("SELECT * FROM turns WHERE id = ?", turn_id)
    assert found is not None
    return found


def _arms_of_turn(db: Database, dialogue: Row, config: ProjectConfig) -> list[dict[str, Any]]:
    arms = drawn_arms(config.arms)
    if config.new_heads.value == "live":
        return arms
    versions = {
        row.head_name: row.head_version
        for row in db.all(
            "SELECT c.head_name, c.head_version FROM candidates c JOIN turns t ON t.id = c.turn_id"
            " WHERE t.dialogue_id = ? AND t.number = 1",
            dialogue.id,
        )
    }
    return [arm if arm["head"] not in versions else {**arm, "head": f"{arm['head']}@{versions[arm['head']]}"} for arm in arms]


def _check_may_go_on(db: Database, assignment: Row, project: OpenProject, earlier: list[Row]) -> None:
    state = db.value("SELECT state FROM assignments WHERE id = ?", assignment.id)  # it may have ended since the row was read
    if state not in ("leased", "expired"):
        raise Clash(f"the assignment is {state}", code="ALREADY_ANSWERED")
    limit = num_turns(db, assignment, project.config)
    if len(earlier) >= limit:
        raise Clash(f"the dialogue has its {limit} turns", code="NO_MORE_TURNS")
    if earlier and earlier[-1].state != "ready":
        raise Clash("the last turn has no replies yet", code="TURN_OPEN")
    if earlier and choice_of(db, earlier[-1]) is None:
        raise Clash("the last turn is not answered yet", code="TURN_OPEN")


def _check_text(text: str, config: ProjectConfig) -> None:
    if not config.text.min_chars <= len(text.strip()) or len(text) > config.text.max_chars:
        raise Invalid(f"must have {config.text.min_chars} to {config.text.max_chars} characters", code="TEXT_LENGTH", field="text")
    if any(0xD800 <= ord(letter) <= 0xDFFF or letter == "\0" for letter in text):
        raise Invalid("holds characters that are no text", code="TEXT_CHARACTERS", field="text")
