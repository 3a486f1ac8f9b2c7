"""Whether people agree about the same things: shares, and coefficients beyond chance of each two people and of all. Of choices S,
whose chance is uniform within an item; else Cohen's weighted kappa and Krippendorff's alpha."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

from polyhead.client.annotate.admin.tables import Cell, Estimate, Share, Table, Word
from polyhead.client.annotate.exports.comparable import all_judgements, by_unit, given, options_of, signs
from polyhead.client.annotate.exports.judgements import Judgement
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.projects.projects import find_project
from polyhead.client.annotate.statistics.agreement import (
    Choices,
    Coefficient,
    Level,
    agreeing_pairs,
    alpha_with_interval,
    bennett_s,
    quadratic,
    weighted_kappa,
)
from polyhead.client.annotate.statistics.intervals import TOO_FEW
from polyhead.client.annotate.storage.database import Database

INSTRUCTGPT = 0.726  # share of agreeing pairs of training labellers: Ouyang et al. 2022, section 3.4
Units = dict[Hashable, dict[str, Any]]


def agreement(db: Database, slug: str, round_number: int = 0) -> list[Table]:
    """Of the things that two people or more have judged."""
    return tables_of(Kind(find_project(db, slug).kind), all_judgements(db, slug, round_number)[0])


def tables_of(kind: Kind, found: Sequence[Judgement]) -> list[Table]:
    """Of judgements of one kind."""
    units, shares = by_unit(given(found)), _shares(found)
    if kind is Kind.CHOOSE:
        options = options_of(found)
        return [_overall_of_choices(units, options, shares), _pairs_of_choices(units, options), _people(units)]
    return [_overall(units, shares), _pairs(units), _people(units)]


def _shares(found: Sequence[Judgement]) -> list[list[Cell]]:
    measures = (("admin.row.same_answer", given(found)), ("admin.row.same_preference", signs(found)))
    return [[Word(name), Share(*agreeing_pairs([list(unit.values()) for unit in by_unit(values).values()]))] for name, values in measures]


def _overall_of_choices(units: Units, options: dict[Hashable, int], shares: list[list[Cell]]) -> Table:
    found = bennett_s([Choices(list(unit.values()), options[key]) for key, unit in units.items()])
    return _coefficients([*shares, [Word("admin.row.s"), _estimate(found)]], "agreement_choices")


def _overall(units: Units, shares: list[list[Cell]]) -> Table:
    values = [list(unit.values()) for unit in units.values()]
    alphas: list[list[Cell]] = [[Word(f"admin.row.alpha_{level.value}"), _estimate(alpha_with_interval(values, level))] for level in Level]
    return _coefficients([*shares, *alphas])


def _coefficients(rows: list[list[Cell]], note: str = "") -> Table:
    return Table("agreement", ("measure", "value"), rows, {"instructgpt": f"{INSTRUCTGPT:.1%}"}, note)


def _estimate(found: Coefficient) -> Estimate:
    return Estimate(found.value, found.interval, found.num_units)


def _pairs_of_choices(units: Units, options: dict[Hashable, int]) -> Table:
    rows: list[list[Cell]] = []
    for people, shared in _shared(units).items():
        found = bennett_s([Choices(values, options[unit]) for unit, values in shared.items()], num=0)
        rows.append([*people, _same(shared), Estimate(found.value)])
    return Table("kappa", ("person", "other", "same", "s"), rows, {"least": TOO_FEW}, "kappa_choices")


def _pairs(units: Units) -> Table:
    rows: list[list[Cell]] = [
        [*people, _same(shared), Estimate(weighted_kappa(list(shared.values()), quadratic))] for people, shared in _shared(units).items()
    ]
    return Table("kappa", ("person", "other", "same", "kappa"), rows, {"least": TOO_FEW})


def _shared(units: Units) -> dict[tuple[str, str], dict[Hashable, tuple[Any, Any]]]:
    """Two people -> unit -> the value of each, of people with enough units in common."""
    found: dict[tuple[str, str], dict[Hashable, tuple[Any, Any]]] = defaultdict(dict)
    for key, unit in units.items():
        for one, other in combinations(sorted(unit), 2):
            found[one, other][key] = unit[one], unit[other]
    return {people: shared for people, shared in sorted(found.items()) if len(shared) >= TOO_FEW}


def _same(shared: dict[Hashable, tuple[Any, Any]]) -> Share:
    return Share(sum(one == other for one, other in shared.values()), len(shared))


def _people(units: Units) -> Table:
    return Table("majority", ("person", "same"), [[person, share] for person, share in like_most(units).items()])


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
