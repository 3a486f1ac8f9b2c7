"""A known answer, told to the person who has answered: after a training item, and as an example when too many answers differ.

Replies have the letters under which this person saw them. Nothing about heads is told, and nothing of other people's answers.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from polyhead.client.annotate.items import gold
from polyhead.client.annotate.projects.bodies import middle_of
from polyhead.client.annotate.projects.config import Kind, ProjectConfig
from polyhead.client.annotate.projects.projects import project_of_item
from polyhead.client.annotate.replies import dialogues
from polyhead.client.annotate.storage.database import Database
from polyhead.client.annotate.web.catalogs import Catalog
from polyhead.client.annotate.web.state import LETTERS


@dataclass(frozen=True)
class Reply:
    letter: str
    text: str
    evidence: list[dict[str, str]]


@dataclass(frozen=True)
class Explained:
    """One answer beside the team's, in words of the person's language."""

    answer_id: str
    is_passed: bool
    messages: list[dict[str, str]]
    rule: str  # "": the item has none
    evidence: list[dict[str, str]]  # cards beside the item
    replies: list[Reply]
    own: str
    expected: str
    why: str  # as the team wrote it; "": it wrote nothing

    def plain(self) -> dict[str, Any]:
        return asdict(self)


def explain(db: Database, answer_id: str, words: Catalog) -> Explained | None:
    """None where nothing is known about the item, or no longer."""
    answer = db.one(
        "SELECT n.*, a.item_id, g.is_passed FROM answers n JOIN assignments a ON a.id = n.assignment_id"
        " JOIN gold_results g ON g.answer_id = n.id WHERE n.id = ?",
        answer_id,
    )
    item = db.one("SELECT * FROM items WHERE id = ?", answer.item_id) if answer is not None else None
    expected = item.json("gold") if item is not None else None
    if answer is None or item is None or expected is None:
        return None
    config, content = project_of_item(db, item.id).config, item.json("content")
    slots = dialogues.slots_of(db, answer.view_id) if answer.view_id else []
    letters = {row.id: LETTERS[row.slot] for row in slots}
    told = in_words(config, answer.json("body"), letters, words, set(_flags(expected)))
    wanted = in_words(config, gold.by_ids(config.kind, expected, gold.order_of(db, item.id, expected)), letters, words)
    messages = [each for each in content.get("messages", []) if each["role"] != "system"]
    replies = [Reply(letters[row.id], row.text, row.json("evidence") or []) for row in slots]
    rule = (content.get("rule") or {}).get("text", "")
    evidence, why = content.get("evidence", []), gold.why(expected, words.locale)
    return Explained(answer.id, bool(answer.is_passed), messages, rule, evidence, replies, told, wanted, why)


def in_words(config: ProjectConfig, body: dict[str, Any], letters: dict[str, str], words: Catalog, flags: set[str] | None = None) -> str:
    """What an answer says. `flags`: of these statements alone; None: of all that it holds."""
    is_worse = config.answer.polarity.value == "worse"
    if config.kind is Kind.CHOOSE:
        best = sorted(letters[each] for each in (body.get("choice"), *body.get("tied", [])) if each)
        return words("choose.none") if body.get("none_good") else words("told.worst" if is_worse else "told.best", letters=", ".join(best))
    if config.kind is Kind.COMPARE:
        return _side(body, letters, words, is_worse=is_worse)
    if config.kind is Kind.RANK:
        return _order(body["ranks"], letters)
    if config.kind is Kind.RATE:
        ratings = [_rating(config, letters[key], each, words, flags) for key, each in _by_letter(body["ratings"], letters)]
        return "; ".join([*ratings, *([_order(body["ranks"], letters)] if body.get("ranks") else [])])
    return words(f"verdict.{body['verdict']}")


def _side(body: dict[str, Any], letters: dict[str, str], words: Catalog, *, is_worse: bool) -> str:
    first, second = sorted(letters.values())[:2]
    distance = body["position"] - middle_of(body["scale"])
    if distance == 0:
        return words("choose.tie")
    return words("told.more_harmful" if is_worse else "told.better", letter=first if distance < 0 else second)


def _order(ranks: dict[str, int], letters: dict[str, str]) -> str:
    """B > A = C."""
    tied = [sorted(letters[key] for key, rank in ranks.items() if rank == place) for place in sorted(set(ranks.values()))]
    return " > ".join(" = ".join(each) for each in tied)


def _rating(config: ProjectConfig, letter: str, rating: dict[str, Any], words: Catalog, flags: set[str] | None) -> str:
    said = [
        f"{_flag_text(config, name, words)}: {words('rate.yes' if value else 'rate.no')}"
        for name, value in rating.get("flags", {}).items()
        if flags is None or name in flags
    ]
    return f"{letter}: {rating['overall']}{' (' + ', '.join(said) + ')' if said else ''}"


def _flag_text(config: ProjectConfig, name: str, words: Catalog) -> str:
    own = config.words(config.answer.flag_texts.get(name, {}), words.locale)
    return own or (words(f"flag.{name}") if words.has(f"flag.{name}") else name)


def _by_letter(ratings: dict[str, Any], letters: dict[str, str]) -> list[tuple[str, Any]]:
    return sorted(ratings.items(), key=lambda pair: letters[pair[0]])


def _flags(expected: dict[str, Any]) -> list[str]:
    """Statements that a known answer speaks of."""
    ratings = expected.get("ratings", [])
    return [name for rating in ratings for name in rating.get("flags", {})]
