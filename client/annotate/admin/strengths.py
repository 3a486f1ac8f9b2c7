"""Which head people prefer: Bradley-Terry strengths of what computed the replies, that is of digest and sampling parameters.

Copies of a head share a digest, and so a strength. Replies that say who wrote them are left out, as in exports.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from polyhead.client.annotate.admin.tables import Cell, Estimate, Table
from polyhead.client.annotate.exports.comparable import all_judgements
from polyhead.client.annotate.exports.judgements import Judgement
from polyhead.client.annotate.exports.pairs import marks_harm, ranks_of
from polyhead.client.annotate.projects.config import Kind
from polyhead.client.annotate.statistics.intervals import NUM_BOOTSTRAPS, Interval
from polyhead.client.annotate.statistics.strength import ELO, Comparison, Strengths, bradley_terry, win_matrix
from polyhead.client.annotate.storage.database import Database, Row


@dataclass(frozen=True)
class Ranking:
    """Strengths with their names, the tables of them, and what was left out by reason."""

    strengths: Strengths
    tables: list[Table]
    left_out: dict[str, int]


def ranking(db: Database, slug: str, round_number: int = 0, *, num: int = NUM_BOOTSTRAPS) -> Ranking:
    """Of one project. The reference head's digest is 0 where it takes part."""
    found, left_out = all_judgements(db, slug, round_number)
    names = _labels(row for judgement in found for row in judgement.candidates.values() if row.digest)
    comparisons = [each for judgement in found for each in comparisons_of(judgement, names)]
    reference = next((label for label in sorted(names.values()) if "reference@" in label), "")
    strengths = bradley_terry(comparisons, reference=reference, num=num)
    return Ranking(strengths, [_table(strengths), _wins(comparisons)], left_out)


def comparisons_of(judgement: Judgement, names: dict[tuple[str, str], str]) -> list[Comparison]:
    """Of replies from different contestants. Of `choose` only those with the best one: about the others nothing was said."""
    ranks = ranks_of(judgement)
    keys = [key for key in judgement.candidates if key in ranks and judgement.candidates[key].digest]
    made = []
    for place, one in enumerate(keys):
        for other in keys[place + 1 :]:
            first, second = (names[_contestant(judgement.candidates[key])] for key in (one, other))
            if first == second or (ranks[one] == ranks[other] and judgement.kind is Kind.CHOOSE and not _is_best(ranks, one, judgement)):
                continue
            score = 0.5 if ranks[one] == ranks[other] else float(ranks[one] < ranks[other])
            made.append(Comparison(judgement.dialogue, first, second, score))
    return made


def _is_best(ranks: dict[str, int], key: str, judgement: Judgement) -> bool:
    """Whether a reply is one of those that were marked: of polarity `worse` the marked ones rank last."""
    return ranks[key] == (max(ranks.values()) if marks_harm(judgement) else min(ranks.values()))


def _contestant(row: Row) -> tuple[str, str]:
    """Digest and sampling parameters, the seed left out."""
    sampling = row.json("sampling") or {}
    return row.digest, json.dumps({name: value for name, value in sampling.items() if name != "seed"}, sort_keys=True)


def _labels(rows: Iterable[Row]) -> dict[tuple[str, str], str]:
    """Contestant -> "policy@3 = reference@1", with a number behind it where sampling tells equal digests apart."""
    versions: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        versions[_contestant(row)].add(f"{row.head_name}@{row.head_version}")
    labels: dict[tuple[str, str], str] = {}
    for contestant, names in sorted(versions.items()):
        label = " = ".join(sorted(names))
        again = sum(each == label or each.startswith(f"{label} #") for each in labels.values())
        labels[contestant] = f"{label} #{again + 1}" if again else label
    return labels


def _table(strengths: Strengths) -> Table:
    rows: list[list[Cell]] = [
        [each.name, Estimate(each.value, each.interval), Estimate(each.elo, _elo(each.interval), digits=0), each.num_comparisons]
        for each in strengths.fitted
    ]
    rows += [[name, Estimate(None), Estimate(None), None] for name in strengths.left_out]
    return Table("strength", ("head", "log_odds", "elo", "comparisons"), rows, {"reference": strengths.reference or "–"})


def _elo(interval: Interval | None) -> Interval | None:
    return None if interval is None else Interval(ELO * interval.low, ELO * interval.high)


def _wins(comparisons: list[Comparison]) -> Table:
    names, wins = win_matrix(comparisons)
    rows: list[list[Cell]] = [
        [name, other, wins[i][j], wins[i][j] + wins[j][i]]
        for i, name in enumerate(names)
        for j, other in enumerate(names)
        if i != j and wins[i][j] + wins[j][i]
    ]
    return Table("wins", ("head", "against", "won", "comparisons"), rows)
