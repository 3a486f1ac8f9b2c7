"""How each person answers, over all projects: like the others or not, how often the first place, and in what time.

Two queries whatever the number of people and answers, so that the page of all people can be read while they work.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from statistics import median

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
class _Shown:
    """The replies of one view, in the order shown."""

    order: list[str]
    has_leak: bool  # one of them names its head
    has_twins: bool  # two have one text


NOTHING = Habits(Share(0, 0), Share(0, 0), Estimate(None, None, 0, 0, TOO_FEW))


def habits(db: Database) -> dict[str, Habits]:
    """By account id; nobody who has not answered is in it."""
    rows, views = db.all(_ANSWERS), _views(db)
    same, firsts = like_most(by_unit(_given(rows, views))), _firsts(rows, views)
    return {
        person: Habits(
            replace(same.get(person, NOTHING.same), least=TOO_FEW),
            replace(firsts.get(person, NOTHING.first_slot), least=TOO_FEW),
            Estimate(median(each), None, len(each), 0, TOO_FEW),
        )
        for person, each in _seconds(rows).items()
    }


def _views(db: Database) -> dict[str, _Shown]:
    slots: dict[str, list[Row]] = defaultdict(list)
    for row in db.all(_SLOTS):
        slots[row.view_id].append(row)
    return {
        view: _Shown([row.candidate_id for row in each], any(row.leaks for row in each), any(row.alias_of is not None for row in each))
        for view, each in slots.items()
    }


def _given(rows: Iterable[Row], views: dict[str, _Shown]) -> Iterable[Given]:
    """What counts on the pages of agreement, too: neither known answers, nor replies that name their head."""
    for row in rows:
        shown = views.get(row.view_id)
        body = row.json("body")
        if row.is_known or body.get("erased") or (shown is not None and shown.has_leak):
            continue
        order = shown.order if shown is not None else []
        for part, value in values_of(Kind(row.kind), body, sorted(order), order).items():
            yield Given((row.thing, part), row.account_id, value)


def _firsts(rows: Iterable[Row], views: dict[str, _Shown]) -> dict[str, Share]:
    """Answers that put one reply before all others: so many of them the one that was shown first."""
    counts: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        shown, body = views.get(row.view_id), row.json("body")
        if shown is None or shown.has_leak or shown.has_twins or row.is_known or body.get("erased") or len(shown.order) < 2:
            continue
        first = first_of(Kind(row.kind), body, shown.order)
        if first is not None:
            counts[row.account_id].append(first == shown.order[0])
    return {person: Share(sum(each), len(each)) for person, each in counts.items()}


def _seconds(rows: Iterable[Row]) -> dict[str, list[float]]:
    """Active seconds of each answer. A page counts from its assignment's beginning: what earlier turns took is taken off."""
    before, times = dict[str, int](), dict[str, list[float]]()
    for row in rows:
        spent = row.active_ms - before.get(row.assignment_id, 0)
        times.setdefault(row.account_id, []).append((spent if spent >= 0 else row.active_ms) / 1000)  # a reloaded page begins again
        before[row.assignment_id] = row.active_ms
    return times


_ANSWERS = """SELECT n.kind, n.body_json, n.view_id, n.active_ms, n.assignment_id, a.account_id, i.gold_kind IS NOT NULL AS is_known,
    coalesce(n.turn_id, i.origin_turn_id, i.id) AS thing
    FROM answers n JOIN assignments a ON a.id = n.assignment_id JOIN items i ON i.id = a.item_id
    WHERE n.state = 'current' ORDER BY n.rowid"""
_SLOTS = """SELECT s.view_id, s.candidate_id, s.alias_of, s.candidate_id IN (SELECT id FROM candidates WHERE has_identity_leak = 1) AS leaks
    FROM view_slots s WHERE s.view_id IN (SELECT view_id FROM answers WHERE state = 'current') ORDER BY s.view_id, s.slot"""
