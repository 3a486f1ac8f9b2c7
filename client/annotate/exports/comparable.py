"""Answers about the same thing, made comparable: what one answer says, as values that do not depend on the order shown."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from polyhead.client.annotate.exports.judgements import Filters, Judgement, judgements
from polyhead.client.annotate.exports.pairs import ranks_of
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.storage.database import Database

NONE_GOOD = "none"


@dataclass(frozen=True)
class Given:
    """One value that one person gave to one unit."""

    unit: Hashable
    person: str
    value: Any


def all_judgements(db: Database, slug: str, round_number: int = 0) -> tuple[list[Judgement], dict[str, int]]:
    """(what counts, what was left out by reason), gold items and leaks left out."""
    left_out: Counter[str] = Counter()
    found = list(judgements(db, slug, Filters(round_number), left_out))
    left_out.pop("other round", None)  # a round's own page speaks of that round alone
    return found, dict(sorted(left_out.items()))


def thing_of(judgement: Judgement) -> str:
    """What is judged: a turn, whoever judges it again, or a stored item."""
    about = judgement.about
    return str(about["turn"] or about["item"])


def given(found: Iterable[Judgement]) -> list[Given]:
    """The values of all answers: one an answer, or one for each reply where each reply gets a number."""
    return [
        Given((thing_of(judgement), part), judgement.about["annotator"], value)
        for judgement in found
        for part, value in values_of(judgement.kind, judgement.body, sorted(judgement.candidates), list(judgement.candidates)).items()
    ]


def values_of(kind: Kind, body: dict[str, Any], candidates: list[str], order: list[str]) -> dict[str, Any]:
    """Part -> value. `candidates` sorted by id, `order` as shown."""
    if kind is Kind.CHOOSE:
        best = sorted({body["choice"], *body["tied"]} - {None})
        return {"": NONE_GOOD if body["none_good"] else "|".join(best)}
    if kind is Kind.RANK:
        return dict(body["ranks"])
    if kind is Kind.RATE:
        return {key: rating["overall"] for key, rating in body["ratings"].items()}
    if kind is Kind.COMPARE and body["position"] is not None:
        most = {"hh8": 8, "stiennon9": 9}[body["scale"]]
        return {"": body["position"] if order == candidates else most + 1 - body["position"]}
    if kind is Kind.RULECHECK:
        return {"": body["verdict"]}
    return {}


def options_of(found: Iterable[Judgement]) -> dict[Hashable, int]:
    """Unit -> among how many answers people chose, of `choose`: the different texts, and that none is good where this is offered. Ties
    are no further answers. Of people who had different numbers the larger one: it is 1 over the chance that they agree."""
    counts: dict[Hashable, int] = {}
    for judgement in found:
        offers_none = judgement.config is not None and judgement.config.answer.none
        count, unit = len({row.text for row in judgement.candidates.values()}) + offers_none, (thing_of(judgement), "")
        counts[unit] = max(count, counts.get(unit, 0))
    return counts


def signs(found: Iterable[Judgement]) -> list[Given]:
    """Which of two replies is preferred, 1 the first or -1 the second by id; ties say nothing."""
    made = []
    for judgement in found:
        ranks = ranks_of(judgement)
        keys = sorted(ranks)
        made += [
            Given((thing_of(judgement), one, other), judgement.about["annotator"], 1 if ranks[one] < ranks[other] else -1)
            for place, one in enumerate(keys)
            for other in keys[place + 1 :]
            if ranks[one] != ranks[other]
        ]
    return made


def by_unit(values: Iterable[Given]) -> dict[Hashable, dict[str, Any]]:
    """Unit -> person -> value; the newest where a person has judged a thing twice."""
    units: dict[Hashable, dict[str, Any]] = defaultdict(dict)
    for each in values:
        units[each.unit][each.person] = each.value
    return units
