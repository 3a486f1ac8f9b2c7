"""Items with a known answer: whether an answer agrees with it. Training items are explained afterwards; gold ones look like any other."""

from __future__ import annotations

from typing import Any

from polyhead.client.annotate.bodies import middle_of
from polyhead.client.annotate.config import Kind
from polyhead.client.annotate.database import Database, Row
from polyhead.client.annotate.projects import OpenProject

LEAST_TAU = 0.6  # of a ranking
LEAST_FLAGS = 0.8  # share of flags


def judge(db: Database, answer_id: str, assignment: Row, project: OpenProject, body: dict[str, Any]) -> None:
    """Store how an answer to an item with a known answer compares; nothing for other items."""
    item = db.one("SELECT gold_json FROM items WHERE id = ?", assignment.item_id)
    expected = item.json("gold") if item else None
    if expected is None:
        return
    texts = {
        row.id: row.text for row in db.all("SELECT id, text FROM candidates WHERE item_id = ? AND origin = 'import'", assignment.item_id)
    }
    order = [key for key, _ in sorted(texts.items(), key=lambda pair: _place(expected, pair[1]))]
    score = agreement(project.config.kind, body, expected, texts, order)
    db.insert("gold_results", {"answer_id": answer_id, "is_passed": int(score >= 1.0), "score": score, "at": db.now()})


def agreement(kind: Kind, body: dict[str, Any], expected: dict[str, Any], texts: dict[str, str], order: list[str]) -> float:
    """1 or more: passed. `expected` names replies by their index in the item, `order` holds their ids by that index."""
    if kind is Kind.CHOOSE:
        return float(body["choice"] == order[expected["choice"]] if expected.get("choice") is not None else body["none_good"])
    if kind is Kind.COMPARE:
        return float((body["position"] < middle_of(body["scale"])) == (expected["position"] < middle_of(body["scale"])))
    if kind is Kind.RANK:
        wanted = {order[index]: rank for index, rank in enumerate(expected["ranks"])}
        return kendall_tau(body["ranks"], wanted) / LEAST_TAU
    if kind is Kind.RATE:
        return _rating(body, {order[index]: each for index, each in enumerate(expected["ratings"])})
    if kind in (Kind.PROBE, Kind.RULECHECK):
        is_same_side = (body["verdict"] - 2) * (expected["verdict"] - 2) > 0 or body["verdict"] == expected["verdict"]
        return float(abs(body["verdict"] - expected["verdict"]) <= 1 and is_same_side)
    return 1.0  # written texts have no known answer


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


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)
