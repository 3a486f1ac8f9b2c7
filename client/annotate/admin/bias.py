"""Whether something other than the reply decides: its place, its length, the language of the pages."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from polyhead.client.annotate.admin.tables import Cell, Estimate, Share, Table
from polyhead.client.annotate.exports.comparable import all_judgements
from polyhead.client.annotate.exports.judgements import Judgement
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.statistics.intervals import TOO_FEW, holm, share_p_value
from polyhead.client.annotate.storage.database import Database

LETTERS = "ABCDEFGHI"


@dataclass(frozen=True)
class Pick:
    """One reply that a person put before all others that were shown."""

    person: str
    locale: str
    slot: int
    num_shown: int
    is_longest: bool | None  # None: two are the longest


def bias(db: Database, slug: str, round_number: int = 0) -> list[Table]:
    """Expected without bias: each of K slots 1/K."""
    found, _ = all_judgements(db, slug, round_number)
    picks = [pick for judgement in found if (pick := _pick(judgement)) is not None]
    return [_slots(picks), _people(picks), _lengths(picks), _times(found)]


def _pick(judgement: Judgement) -> Pick | None:
    """None where no single reply was marked first, or two of those shown have one text."""
    first = first_of(judgement.kind, judgement.body, list(judgement.candidates))
    texts = [row.text for row in judgement.candidates.values()]
    if first is None or len(set(texts)) != len(texts) or len(texts) < 2:
        return None
    order = list(judgement.candidates)
    lengths = sorted((len(text) for text in texts), reverse=True)
    is_longest = None if lengths[0] == lengths[1] else len(judgement.candidates[first].text) == lengths[0]
    return Pick(judgement.about["annotator"], judgement.about["locale"], order.index(first), len(order), is_longest)


def first_of(kind: Kind, body: Mapping[str, Any], order: Sequence[str]) -> str | None:
    """The one reply that an answer puts before all others. `order`: as shown."""
    if kind is Kind.CHOOSE:
        return body["choice"] if not body["tied"] else None
    if kind is Kind.RANK:
        best = [key for key, rank in body["ranks"].items() if rank == 1]
        return best[0] if len(best) == 1 else None
    if kind is Kind.COMPARE and body["position"] is not None and len(order) == 2:
        middle = {"hh8": 4.5, "stiennon9": 5.0}[body["scale"]]
        return None if body["position"] == middle else order[int(body["position"] > middle)]
    return None


def _slots(picks: Iterable[Pick]) -> Table:
    counts: dict[int, list[int]] = {}
    for pick in picks:
        counts.setdefault(pick.num_shown, [0] * pick.num_shown)[pick.slot] += 1
    rows: list[list[Cell]] = [
        [shown, LETTERS[slot], Share(count, sum(slots)), f"{1 / shown:.0%}", _p(share_p_value(count, sum(slots), 1 / shown))]
        for shown, slots in sorted(counts.items())
        for slot, count in enumerate(slots)
    ]
    return Table("slots", ("num_shown", "slot", "chosen", "expected", "p_value"), rows)


def _people(picks: Iterable[Pick]) -> Table:
    """How often each person takes the first one, of as many shown; p-values corrected for the number of people."""
    groups: dict[tuple[str, int], list[Pick]] = defaultdict(list)
    for pick in picks:
        groups[pick.person, pick.num_shown].append(pick)
    tested = {key: group for key, group in sorted(groups.items()) if len(group) >= TOO_FEW}
    counts = {key: sum(pick.slot == 0 for pick in group) for key, group in tested.items()}
    corrected = holm([share_p_value(counts[key], len(group), 1 / key[1]) for key, group in tested.items()])
    rows: list[list[Cell]] = [
        [key[0], key[1], Share(counts[key], len(group)), f"{1 / key[1]:.0%}", _p(p)]
        for (key, group), p in zip(tested.items(), corrected, strict=True)
    ]
    return Table("first_slot", ("person", "num_shown", "chosen", "expected", "p_value"), rows, {"least": TOO_FEW})


def _lengths(picks: Iterable[Pick]) -> Table:
    """How often the longest reply is chosen, by the language of the pages."""
    groups: dict[tuple[str, int], list[bool]] = defaultdict(list)
    for pick in picks:
        if pick.is_longest is not None:
            groups[pick.locale, pick.num_shown].append(pick.is_longest)
    rows: list[list[Cell]] = [
        [locale, shown, Share(sum(found), len(found)), f"{1 / shown:.0%}"] for (locale, shown), found in sorted(groups.items())
    ]
    return Table("longest", ("language", "num_shown", "chosen", "expected"), rows)


def _times(found: Iterable[Judgement]) -> Table:
    """Seconds from the replies' appearance to the first act, by person."""
    times: dict[str, list[float]] = defaultdict(list)
    for judgement in found:
        shown_at, first_at = judgement.about["shown_at"], judgement.about["first_input_at"]
        if shown_at and first_at and first_at >= shown_at:
            times[judgement.about["annotator"]].append((first_at - shown_at) / 1000)
    rows: list[list[Cell]] = [[person, Estimate(median(each), None, len(each), 1)] for person, each in sorted(times.items())]
    return Table("first_input", ("person", "seconds"), rows)


def _p(value: float) -> Cell:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
