"""Items from JSON lines: what is wrong is named by its line. storing.py has the way of a file into the database.

{"messages": [{"role", "content"}, ...]}  or  {"prompt": "text"}
with "replies": [text or {"text", "evidence"}, ...] where replies are judged, "rule": {"id", "text"} or "rule_id" where a rule is;
"evidence": a card or a list of them, shown beside the item; "user_turns": [text, ...], what the user says after the first message, where
replies are drawn live; and "id", "lang", "priority", "overlap", "gold": {...}, "gold_kind": "gold" | "attention" | "training"
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from polyhead.client.annotate.items.evidence import read_cards
from polyhead.client.annotate.items.gold import what_is_wrong
from polyhead.client.annotate.items.storing import PAUSE_S, Imported, Item, Reply, plan_import, store, storing
from polyhead.client.annotate.problems import Clash, Invalid, TooLarge
from polyhead.client.annotate.projects.config import MAX_SHOWN, Kind, ProjectConfig, UserSource
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.projects.rules import known_rules
from polyhead.client.annotate.replies.dialogues import searches
from polyhead.client.annotate.storage.database import Database, sha256, to_json

_KEYS = {
    *("messages", "prompt", "replies", "rule", "rule_id", "id", "lang", "priority", "overlap", "gold", "gold_kind"),
    *("evidence", "user_turns"),
}
_ROLES = ("system", "user", "assistant")
MAX_BYTES = 50 << 20
MAX_NAMED = 20  # wrong lines that are named, of any number


class WrongLines(Invalid):
    """Lines that are no items, each with what is wrong in it. Nothing of the file was stored."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines[:MAX_NAMED]
        self.num_more = len(lines) - len(self.lines)
        more = [f"{self.num_more} more lines are wrong"] if self.num_more else []
        super().__init__("\n".join([*self.lines, *more]), field=lines[0].partition(":")[0])


def import_items(db: Database, project: OpenProject, path: Path, by: str, *, dry_run: bool = False) -> Imported:
    """Store the items of a file in the project's open round. WrongLines names its lines; Clash if no round is open, or if another file
    is being stored."""
    if path.stat().st_size > MAX_BYTES:
        raise TooLarge(f"{path.name} has more than {MAX_BYTES >> 20} MiB\nhint: split it")
    data = path.read_bytes()
    items = read_items(project, known_rules(db, project)[1], data, path.name)
    with storing(db):
        plan = plan_import(db, project, path.name, data, items)
        if not dry_run:
            for _ in store(db, plan, by):
                time.sleep(PAUSE_S)  # a server on the same file writes meanwhile
    return plan.result


def read_items(project: OpenProject, rules: Sequence[dict[str, str]], data: bytes, file: str = "") -> list[Item]:
    """The items of a file's bytes, checked. WrongLines for lines that are none, with the file's name if it is given; needs no database,
    and so may run in a thread."""
    if not project.round_id:
        raise Clash(f"no round of {project.config.slug} is open", code="NO_ROUND")
    by_id = {rule["id"]: rule for rule in rules}
    found: list[Item] = []
    wrong: list[str] = []
    for number, line in enumerate(_text(data).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(_parsed(project, by_id, f"{file}, line {number}" if file else f"line {number}", line))
        except Invalid as error:
            wrong.append(error.detail)
    if wrong:
        raise WrongLines(wrong)
    return found


def _parsed(project: OpenProject, rules: dict[str, dict[str, str]], place: str, line: str) -> Item:
    """One line as the columns of an item, its replies beside them."""

    def wrong(what: str) -> Invalid:
        return Invalid(f"{place}: {what}", field=place)

    try:
        given = json.loads(line)
    except (ValueError, RecursionError):
        raise wrong("not JSON") from None
    try:  # what could not be stored, nor sent to a page: half a character, a number that JSON lacks
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise wrong("holds a number that is not finite, or half a character (a lone surrogate)") from None
    if not isinstance(given, dict):
        raise wrong("not an object")
    if unknown := sorted(given.keys() - _KEYS):
        raise wrong(f"unknown key {unknown[0][:40]!r}; known are {', '.join(sorted(_KEYS))}")
    messages, replies = _messages(given, wrong), _replies(given, wrong)
    content = _content(project, given, messages, replies, rules, wrong)
    numbers = {"priority": given.get("priority", 0), "overlap": given.get("overlap", project.config.queue.overlap)}
    if not all(type(value) is int for value in numbers.values()) or numbers["overlap"] < 1:
        raise wrong("'priority' and 'overlap' must be whole numbers, 'overlap' at least 1")
    texts = [reply.text for reply in replies]
    gold, kind = _gold(project, given, texts, wrong)
    return {
        "external_id": None if given.get("id") is None else str(given["id"])[:200], "lang": str(given.get("lang", ""))[:20],
        "content_json": to_json(content), "content_sha256": sha256(to_json({**content, "replies": [each.plain() for each in replies]})),
        **numbers, "gold_json": None if gold is None else to_json({**gold, "replies": texts}), "gold_kind": kind, "replies": replies,
    }  # fmt: skip


def _gold(project: OpenProject, given: dict[str, Any], replies: list[str], wrong: Any) -> tuple[dict[str, Any] | None, str | None]:
    """(the known answer, what kind of item that makes of it)"""
    gold = given.get("gold")
    if gold is not None and not isinstance(gold, dict):
        raise wrong("'gold' must be the body of the expected answer, its replies by index")
    if gold is not None and (problem := what_is_wrong(project.config, gold, len(replies))):
        raise wrong(f"'gold': {problem}")
    if gold is not None and len(set(replies)) != len(replies):
        raise wrong("'replies' of an item with a known answer must differ")
    kind = given.get("gold_kind", "gold" if gold is not None else None)
    if kind not in (None, "gold", "attention", "training"):
        raise wrong("'gold_kind' must be gold, attention or training")
    return gold, kind


def _content(
    project: OpenProject, given: dict[str, Any], messages: list[dict[str, str]], replies: list[Reply], rules: dict[str, dict[str, str]],
    wrong: Any,
) -> dict[str, Any]:  # fmt: skip
    """What the item shows, checked for the kind of task."""
    config = project.config
    kind = config.kind
    content: dict[str, Any] = {"messages": messages}
    if "evidence" in given:
        content["evidence"] = read_cards(given["evidence"], "evidence", wrong)
    if "user_turns" in given and (replies or not project.is_live or not kind.shows_candidates):
        raise wrong("'user_turns' are what the user says between replies that are drawn live and judged turn by turn: this item has none")
    if kind in (Kind.PROBE, Kind.RULECHECK):
        content["rule"] = _rule(given, rules, wrong)
        content["rule_set"] = config.rules.rule_set
    if replies and not (kind.shows_candidates or kind is Kind.EDIT):
        raise wrong(f"{kind.value} takes no 'replies'")
    if replies or (kind.shows_candidates and not project.is_live) or kind is Kind.EDIT:
        least, most = (1, 1) if kind is Kind.EDIT else (2, 2) if kind is Kind.COMPARE else (2, MAX_SHOWN)
        if not least <= len(replies) <= most:
            raise wrong(f"{kind.value} needs {least} to {most} replies: {len(replies)}")
        if messages[-1]["role"] != "user":
            raise wrong("the last message must be the user's: the replies answer it")
        return {**content, "has_replies": True}
    if kind is Kind.RULECHECK and messages[-1]["role"] != "assistant":
        raise wrong("the last message must be the assistant's: it is what is checked")
    if kind is Kind.DEMONSTRATE and messages[-1]["role"] != "user":
        raise wrong("the last message must be the user's: it is what is to be answered")
    if project.is_live:
        if config.dialogue.user is UserSource.ANNOTATOR:
            raise wrong("this project's people write the messages: dialogue.user is annotator")
        if messages[-1]["role"] != "user":
            raise wrong("the last message must be the user's: the replies answer it")
        content |= {"messages": messages[:-1], "user": messages[-1]["content"]}
        if searches(config, content) and 2 * config.num_shown > MAX_SHOWN:
            raise wrong(f"'evidence' doubles the project's {config.num_shown} replies, once without and once with it: at most {MAX_SHOWN}")
        return {**content, "user_turns": _user_turns(given, config, wrong)} if "user_turns" in given else content
    return content


def _user_turns(given: dict[str, Any], config: ProjectConfig, wrong: Any) -> list[str]:
    """What the user says after the first message; none: the dialogue has one turn."""
    said, most = given["user_turns"], config.dialogue.max_turns
    if not isinstance(said, list) or not all(isinstance(each, str) and each.strip() for each in said):
        raise wrong("'user_turns' must be a list of texts, none of them empty")
    if 1 + len(said) > most:
        raise wrong(f"'user_turns' and the first message are {1 + len(said)} turns: the project's dialogue.max_turns is {most}")
    return said


def _replies(given: dict[str, Any], wrong: Any) -> list[Reply]:
    replies = given.get("replies", [])
    if not isinstance(replies, list):
        raise wrong("'replies' must be a list of texts")
    return [_reply(each, f"replies[{index}]", wrong) for index, each in enumerate(replies)]


def _reply(given: Any, name: str, wrong: Any) -> Reply:
    """A text, or a text with what it rests on."""
    if isinstance(given, str) and given:
        return Reply(given, [])
    if not isinstance(given, dict) or given.keys() != {"text", "evidence"} or not isinstance(given["text"], str) or not given["text"]:
        raise wrong(f"'{name}' must be a text, or an object of 'text' and 'evidence'")
    return Reply(given["text"], read_cards(given["evidence"], f"{name}.evidence", wrong))


def _rule(given: dict[str, Any], rules: dict[str, dict[str, str]], wrong: Any) -> dict[str, str]:
    rule = given.get("rule") or rules.get(str(given.get("rule_id")))
    if not isinstance(rule, dict) or not all(isinstance(rule.get(key), str) and rule[key] for key in ("id", "text")):
        raise wrong("needs 'rule' with the texts 'id' and 'text', or a 'rule_id' of the project's rule set")
    return {"id": rule["id"], "text": rule["text"]}


def _messages(given: dict[str, Any], wrong: Any) -> list[dict[str, str]]:
    if ("messages" in given) == ("prompt" in given):
        raise wrong("needs either 'messages' or 'prompt'")
    if "prompt" in given:
        if not isinstance(given["prompt"], str) or not given["prompt"]:
            raise wrong("'prompt' must be a text")
        return [{"role": "user", "content": given["prompt"]}]
    messages = given["messages"]
    if not isinstance(messages, list) or not messages:
        raise wrong("'messages' must be a list")
    for message in messages:
        is_one = isinstance(message, dict) and message.get("role") in _ROLES and isinstance(message.get("content"), str)
        if not is_one:
            raise wrong(f"each message needs a 'role' of {', '.join(_ROLES)} and a text 'content'")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Invalid(f"not UTF-8 text: byte {error.start}", field="file") from None
