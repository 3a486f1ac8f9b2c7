"""How each person answers, over all projects: like the others or not, how often the first place, and in what time.

One query whatever the number of people and answers, so that the page of all people can be read while they work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from polyhead.client.annotate.admin.agreement import like_most
from polyhead.client.annotate.admin.bias import first_of
from polyhead.client.annotate.admin.tables import Estimate, Share
from polyhead.client.annotate.exports.comparable import Given, by_unit, values_of
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.statistics.intervals import TOO_FEW
from polyhead.client.annotate.storage.database import Database, Row


@dataclass(frozen=True)
class Habits:
    """Of one person. `same`: answers that are what most of the others say about the same thing. `first_slot`: answers that put the
    reply shown first before all others. `seconds`: active time of an answer, the median."""

    same: Share
    first_slot: Share
    seconds: Estimate


@dataclass(frozen=True)
class _Said:
    """One answer that can be compared: neither to a known item, nor about replies of which one names its head."""

    person: str
    thing: str
    kind: Kind
    body: dict[str, Any]
    order: list[str]  # of the replies, as shown
    has_twins: bool  # two of them have one text


NOTHING = Habits(Share(0, 0), Share(0, 0), Estimate(None, None, 0, 0, TOO_FEW))


def habits(db: Database) -> dict[str, Habits]:
    """By account id; nobody who has not answered is in it."""
    rows = db.all(_ANSWERS)
    said = [each for row in rows if (each := _said(row)) is not None]
    same, firsts = like_most(by_unit(_given(said))), _firsts(said)
    return {
        person: Habits(
            replace(same.get(person, NOTHING.same), least=TOO_FEW),
            replace(firsts.get(person, NOTHING.first_slot), least=TOO_FEW),
            Estimate(median(each), None, len(each), 0, TOO_FEW),
        )
        for person, each in _seconds(rows).items()
    }


def _said(row: Row) -> _Said | None:
    """What counts on the pages of agreement and bias, too."""
    body = row.json("body")
    if row.is_known or row.leaks or body.get("erased"):
        return None
    order = [each[1:] for each in sorted((row.slots or "").split(",")) if each]  # "0" and the candidate, "1" and the next: one digit
    return _Said(row.account_id, row.thing, Kind(row.kind), body, order, bool(row.twins))


def _given(said: Iterable[_Said]) -> Iterable[Given]:
    for each in said:
        for part, value in values_of(each.kind, each.body, sorted(each.order), each.order).items():
            yield Given((each.thing, part), each.person, value)


def _firsts(said: Iterable[_Said]) -> dict[str, Share]:
    """Answers that put one reply before all others: so many of them the one that was shown first."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for each in said:
        if len(each.order) > 1 and not each.has_twins and (first := first_of(each.kind, each.body, each.order)) is not None:
            counts[each.person].append(first == each.order[0])
    return {person: Share(sum(each), len(each)) for person, each in counts.items()}


def _seconds(rows: Iterable[Row]) -> dict[str, list[float]]:
    """Active seconds of each answer. A page counts from its assignment's beginning: what earlier turns took is taken off."""
    before, times = dict[str, int](), dict[str, list[float]]()
    for row in rows:
        spent = row.active_ms - before.get(row.assignment_id, 0)
        times.setdefault(row.account_id, []).append((spent if spent >= 0 else row.active_ms) / 1000)  # a reloaded page begins again
        before[row.assignment_id] = row.active_ms
    return times


_ANSWERS = """
WITH shown AS (SELECT view_id, group_concat(slot || candidate_id) AS slots, max(alias_of IS NOT NULL) AS twins,
  max(candidate_id IN (SELECT id FROM candidates WHERE has_identity_leak = 1)) AS leaks FROM view_slots GROUP BY view_id)
SELECT n.kind, n.body_json, n.active_ms, n.assignment_id, a.account_id, i.gold_kind IS NOT NULL AS is_known,
  coalesce(n.turn_id, i.origin_turn_id, i.id) AS thing, s.slots, s.twins, ifnull(s.leaks, 0) AS leaks
FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id LEFT JOIN shown s ON s.view_id = n.view_id
WHERE n.state = 'current' ORDER BY n.rowid"""
