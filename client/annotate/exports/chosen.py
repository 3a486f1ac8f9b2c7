"""Which judgements go out: adjudicated ones in place of the answers about their items, and those about which people agree enough."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

from polyhead.client.annotate.exports.adjudicated import decisions
from polyhead.client.annotate.exports.comparable import by_unit, given, thing_of
from polyhead.client.annotate.exports.judgements import Filters, Judgement, judgements
from polyhead.client.annotate.statistics.agreement import agreeing_pairs
from polyhead.client.annotate.storage.database import Database


def chosen(db: Database, slug: str, filters: Filters, left_out: Counter[str]) -> list[Judgement]:
    """In the order in which they came, adjudicated ones last. What is left out is counted by its reason."""
    found = list(judgements(db, slug, filters, left_out))
    decided = decisions(db, slug, filters, left_out) if filters.adjudicated else []
    things = {thing_of(each) for each in decided}
    undecided = [each for each in found if thing_of(each) not in things]
    left_out.update({"adjudicated": len(found) - len(undecided)} if len(found) > len(undecided) else {})
    return [*(_agreed(undecided, filters.least_agreement, left_out) if filters.least_agreement else undecided), *decided]


def _agreed(found: Sequence[Judgement], least: float, left_out: Counter[str]) -> list[Judgement]:
    shares = agreement_of_things(found)
    kept = []
    for judgement in found:
        share = shares.get(thing_of(judgement))
        if share is None:
            left_out["judged once"] += 1
        elif share < least:
            left_out["too little agreement"] += 1
        else:
            kept.append(judgement)
    return kept


def agreement_of_things(found: Sequence[Judgement]) -> dict[str, float]:
    """Thing -> the share of pairs of people who say the same about it, over its replies where each gets a value of its own.
    A thing that one person alone has judged is not among them."""
    values: dict[str, list[list[Hashable]]] = defaultdict(list)
    for unit, by_person in by_unit(given(found)).items():
        assert isinstance(unit, tuple)
        values[unit[0]].append(list(by_person.values()))
    counts = {thing: agreeing_pairs(units) for thing, units in values.items()}
    return {thing: equal / total for thing, (equal, total) in counts.items() if total}
