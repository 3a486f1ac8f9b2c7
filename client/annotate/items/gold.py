"""Items with a known answer: whether an answer agrees with it. They look like any other item."""

from __future__ import annotations

from typing import Any

from polyhead.client.annotate.projects.bodies import middle_of
from polyhead.client.annotate.projects.config import Kind, ProjectConfig
from polyhead.client.annotate.projects.projects import OpenProject
from polyhead.client.annotate.storage.database import Database, Row

LEAST_TAU = 0.6  # of a ranking
LEAST_FLAGS = 0.8  # share of flags


def judge(db: Database, answer_id: str, assignment: Row, project: OpenProject, body: dict[str, Any]) -> bool:
    """Store how an answer to an item with a known answer compares. Returns whether the item has one."""
    item = db.one("SELECT gold_json FROM items WHERE id = ?", assignment.item_id)
    expected = item.json("gold") if item else None
    if expected is None:
        return False
    order = order_of(db, assignment.item_id, expected)
    score = agreement(project.config.kind, body, expected, order)
    db.insert("gold_results", {"answer_id": answer_id, "is_passed": int(score >= 1.0), "score": score, "at": db.now()})
    return True


def order_of(db: Database, item_id: str, expected: dict[str, Any]) -> list[str]:
    """Ids of the item's replies in the order by which the known answer counts them."""
    rows = db.all("SELECT id, text FROM candidates WHERE item_id = ? AND origin = 'import'", item_id)
    return [row.id for row in sorted(rows, key=lambda row: _place(expected, row.text))]


def by_ids(kind: Kind, expected: dict[str, Any], order: list[str]) -> dict[str, Any]:
    """The known answer as a body, which names replies by their ids."""
    body = {name: value for name, value in expected.items() if name not in ("replies", "why")}
    if kind is Kind.CHOOSE and not body.get("none_good"):
        body["choice"] = order[body["choice"]]
    for name in {Kind.RANK: ("ranks",), Kind.RATE: ("ratings",)}.get(kind, ()):
        body[name] = {order[index]: each for index, each in enumerate(body[name])}
    return body


def why(expected: dict[str, Any], locale: str) -> str:
    """The team's reason, in this language or in English; "" where it wrote none."""
    text = expected.get("why", "")
    return str(text if isinstance(text, str) else text.get(locale) or text.get("en") or "")


def what_is_wrong(config: ProjectConfig, expected: dict[str, Any], num_replies: int) -> str:
    """Why no answer could be compared with this one; "" where each can be."""
    if not _is_reason(expected.get("why", "")):
        return "'why' must be a text, or a text for each language: {\"en\": ...}"
    kind, last = config.kind, num_replies - 1
    if kind is Kind.CHOOSE:
        is_fine = expected.get("none_good") is True or _is_whole(expected.get("choice"), 0, last)
        return "" if is_fine else f"'choice' must be the index of a reply, 0 to {last}, or 'none_good' true"
    if kind is Kind.COMPARE:
        most = config.answer.strength.num_points
        return "" if _is_whole(expected.get("position"), 1, most) else f"'position' must lie between 1 and {most}"
    if kind is Kind.RANK:
        ranks = expected.get("ranks")
        is_fine = isinstance(ranks, list) and len(ranks) == num_replies and all(_is_whole(rank, 1, num_replies) for rank in ranks)
        return "" if is_fine else f"'ranks' must be a list of {num_replies} whole numbers, 1 to {num_replies}"
    if kind is Kind.RATE:
        ratings = expected.get("ratings")
        is_fine = isinstance(ratings, list) and len(ratings) == num_replies and all(_is_rating(rating) for rating in ratings)
        return "" if is_fine else f"'ratings' must be a list of {num_replies}, each with 'overall', 1 to 7"
    if kind in (Kind.PROBE, Kind.RULECHECK):
        return "" if _is_whole(expected.get("verdict"), 0, 4) else "'verdict' must lie between 0 and 4"
    return f"{kind.value} is writing: no text is known to be the right one"


def agreement(kind: Kind, body: dict[str, Any], expected: dict[str, Any], order: list[str]) -> float:
    """1 or more: passed. `expected` names replies by their index in the item, `order` holds their ids by that index."""
    if kind is Kind.CHOOSE:
        return float(body["none_good"] if expected.get("none_good") else body["choice"] == order[expected["choice"]])
    if kind is Kind.COMPARE:
        twice_middle = round(2 * middle_of(body["scale"]))
        return float(_sign(2 * body["position"] - twice_middle) == _sign(2 * expected["position"] - twice_middle))
    if kind is Kind.RANK:
        wanted = {order[index]: rank for index, rank in enumerate(expected["ranks"])}
        return kendall_tau(body["ranks"], wanted) / LEAST_TAU
    if kind is Kind.RATE:
        return _rating(body, {order[index]: each for index, each in enumerate(expected["ratings"])})
    if kind in (Kind.PROBE, Kind.RULECHECK):
        is_same_side = (body["verdict"] - 2) * (expected["verdict"] - 2) > 0 or body["verdict"] == expected["verdict"]
        return float(abs(body["verdict"] - expected["verdict"]) <= 1 and is_same_side)
    raise AssertionError(f"{kind} has no known answers")


def kendall_tau(one: dict[str, int], other: dict[str, int]) -> float:
    """Tau-a over the pairs: (agreeing - opposed) / all; a tie in one alone counts neither way. Kendall 1938."""
    keys = sorted(one)
    signs = [
        _sign(one[first] - one[second]) * _sign(other[first] - other[second])
        for number, first in enumerate(keys)
        for second in keys[number + 1 :]
    ]
    both_tied = sum(
        one[first] == one[second] and other[first] == other[second] for number, first in enumerate(keys) for second in keys[number + 1 :]
    )
    return (sum(signs) + both_tied) / len(signs) if signs else 1.0


def _rating(body: dict[str, Any], wanted: dict[str, Any]) -> float:
    near = all(abs(body["ratings"][key]["overall"] - each["overall"]) <= 1 for key, each in wanted.items())
    flags = [
        body["ratings"][key]["flags"].get(name) == value for key, each in wanted.items() for name, value in each.get("flags", {}).items()
    ]
    share = sum(flags) / len(flags) if flags else 1.0
    return float(near) * share / LEAST_FLAGS if near else 0.0


def _place(expected: dict[str, Any], text: str) -> int:
    """Of a reply among the item's own, whose texts the gold answer keeps in order."""
    replies = expected.get("replies", [])
    return replies.index(text) if text in replies else len(replies)


def _is_whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _is_rating(rating: Any) -> bool:
    return isinstance(rating, dict) and _is_whole(rating.get("overall"), 1, 7) and isinstance(rating.get("flags", {}), dict)


def _is_reason(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and all(isinstance(each, str) for each in value.values()))


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
