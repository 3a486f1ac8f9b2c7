"""Whether people agree about the same things: shares, Cohen's kappa of each two people, Krippendorff's alpha of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from itertools import combinations
from typing import Any

from polyhead.client.annotate.admin.tables import Cell, Estimate, Share, Table, Word
from polyhead.client.annotate.exports.comparable import LEVELS, all_judgements, by_unit, given, signs
from polyhead.client.annotate.statistics.agreement import (
    Level,
    agreeing_pairs,
    alpha_with_interval,
    cohen_kappa,
    quadratic,
    weighted_kappa,
)
from polyhead.client.annotate.statistics.intervals import TOO_FEW
from polyhead.client.annotate.storage.database import Database

INSTRUCTGPT = 0.726  # share of agreeing pairs of training labellers: Ouyang et al. 2022, section 3.4
Units = dict[Hashable, dict[str, Any]]


def agreement(db: Database, slug: str, round_number: int = 0) -> list[Table]:
    """Of the things that two people or more have judged."""
    found, _ = all_judgements(db, slug, round_number)
    units = by_unit(given(found))
    level = LEVELS.get(found[0].kind, Level.ORDINAL) if found else Level.NOMINAL
    return [_overall(units, by_unit(signs(found)), level), _pairs(units, level), _people(units)]


def _people(units: Units) -> Table:
    return Table("majority", ("person", "same"), [[person, share] for person, share in like_most(units).items()])


def _overall(units: Units, preferences: Units, level: Level) -> Table:
    values = [list(unit.values()) for unit in units.values()]
    rows: list[list[Cell]] = [
        [Word("admin.row.same_answer"), Share(*agreeing_pairs(values))],
        [Word("admin.row.same_preference"), Share(*agreeing_pairs([list(unit.values()) for unit in preferences.values()]))],
    ]
    for each in (Level.NOMINAL,) if level is Level.NOMINAL else Level:
        alpha = alpha_with_interval(values, each)
        rows.append([Word(f"admin.row.alpha_{each.value}"), Estimate(alpha.value, alpha.interval, alpha.num_units)])
    return Table("agreement", ("measure", "value"), rows, {"instructgpt": f"{INSTRUCTGPT:.1%}"})


def _pairs(units: Units, level: Level) -> Table:
    """Cohen's kappa, of places in an order with quadratic weights."""
    people = sorted({person for unit in units.values() for person in unit})
    rows: list[list[Cell]] = []
    for one, other in combinations(people, 2):
        shared = [(unit[one], unit[other]) for unit in units.values() if one in unit and other in unit]
        if len(shared) >= TOO_FEW:
            kappa = cohen_kappa(shared) if level is Level.NOMINAL else weighted_kappa(shared, quadratic)
            rows.append([one, other, Share(sum(a == b for a, b in shared), len(shared)), Estimate(kappa)])
    return Table("kappa", ("person", "other", "same", "kappa"), rows, {"least": TOO_FEW})


def like_most(units: Units) -> dict[str, Share]:
    """How often each person says what most of the others say; nobody who was always alone, or among others who differ, is in it."""
    same: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for unit in units.values():
        counts = Counter(unit.values())
        for person, value in unit.items():
            counts[value] -= 1  # the others alone
            majority = _majority(counts)
            counts[value] += 1
            if majority is not None:
                total[person] += 1
                same[person] += value == majority
    return {person: Share(same[person], total[person]) for person in sorted(total)}


def _majority(counts: Counter[Any]) -> Any:
    """What more people say than anything else; None where two values lead, or nobody says anything."""
    first = [each for each in counts.most_common(2) if each[1]]
    return None if not first or (len(first) > 1 and first[0][1] == first[1][1]) else first[0][0]
