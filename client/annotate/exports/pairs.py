"""Which reply a judgement prefers to which: pairs and ranks of every kind that compares. Ties prefer nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Any

from polyhead.client.annotate.exports.judgements import Judgement
from polyhead.client.annotate.projects.bodies import middle_of
from polyhead.client.annotate.projects.config import Kind

Pair = tuple[str, str]  # (the better one's id, the other's)


def ranks_of(judgement: Judgement) -> dict[str, int]:
    """1 for the best; equal numbers are ties. Empty for a kind that compares nothing.

    Where the most harmful reply was marked first, the marks are turned round.
    """
    ranks = _marked(judgement)
    if ranks and marks_harm(judgement):
        most = max(ranks.values())
        ranks = {key: most + 1 - rank for key, rank in ranks.items()}
    return ranks


def marks_harm(judgement: Judgement) -> bool:
    """Whether the first mark is for the most harmful reply, as polarity `worse` asks. The least bad reply is the best one of either
    polarity, and 7 is excellent: ratings without an order are never turned round."""
    if judgement.kind is Kind.CHOOSE and judgement.body["none_good"]:
        return False
    if judgement.kind is Kind.RATE and not judgement.body.get("ranks"):
        return False
    return judgement.polarity == "worse"


def pairs_of(judgement: Judgement) -> Iterator[Pair]:
    """All pairs whose ranks differ, in the order shown: of `choose` the K - 1 with the best one, of a ranking all ordered pairs."""
    ranks = ranks_of(judgement)
    for better in ranks:
        yield from ((better, other) for other in ranks if ranks[better] < ranks[other])


def ties_of(judgement: Judgement) -> Iterator[Pair]:
    """All pairs that were said to be equally good, in the order shown: of `choose` only among the ones marked best."""
    body, ranks = judgement.body, ranks_of(judgement)
    if judgement.kind is Kind.CHOOSE:
        said = set() if body["none_good"] else {body["choice"], *body["tied"]}
        ranks = {key: rank for key, rank in ranks.items() if key in said}
    yield from ((one, other) for one, other in combinations(ranks, 2) if ranks[one] == ranks[other])


def pairs_with_texts_of(judgement: Judgement, left_out: Counter[str], *, says_more: bool = False) -> Iterator[tuple[str, str]]:
    """The pairs of which neither text is empty. `says_more`: the judgement makes other rows, and so is not left out without pairs."""
    if not ranks_of(judgement):
        left_out["another kind"] += 1
        return
    found = [(one, other) for one, other in pairs_of(judgement) if text_of(judgement, one) and text_of(judgement, other)]
    if not found and not says_more:
        left_out["tie"] += 1
    yield from found


def text_pairs_of(judgement: Judgement, left_out: Counter[str], *, says_more: bool = False) -> Iterator[tuple[str, str]]:
    """(the better text, the other one) of each pair. A mended reply is better than the one before, which answers the same messages; it
    stands beside no other reply, so that it makes pairs alone, and counts for no head's strength. Polarity asks for nothing here."""
    if judgement.kind is not Kind.EDIT:
        for better, other in pairs_with_texts_of(judgement, left_out, says_more=says_more):
            yield text_of(judgement, better), text_of(judgement, other)
        return
    mended, before = judgement.body["text"], text_of(judgement, judgement.body["candidate"])
    if before and mended != before:
        yield mended, before
    else:
        left_out["not mended"] += 1


def margin_of(judgement: Judgement) -> float | None:
    """How sure the preference is, 0 to 1: |position - middle| / (points - 1) * 2 of a scale. None where no scale was asked."""
    body = judgement.body
    position, scale = (
        (body.get("position"), body.get("scale")) if judgement.kind is Kind.COMPARE else (body.get("strength"), _scale(judgement))
    )
    if position is None or not scale:
        return None
    middle = middle_of(scale)
    return round(float(abs(position - middle)) / (middle - 1), 4)


def _marked(judgement: Judgement) -> dict[str, int]:
    """As the person marked them, 1 for what was marked first."""
    body, shown = judgement.body, list(judgement.candidates)
    if judgement.kind is Kind.CHOOSE:
        first = {body["least_bad"]} if body["none_good"] else {body["choice"], *body["tied"]}
        texts = {text_of(judgement, each) for each in shown if each in first}  # the same text is equally good
        return {each: 1 if text_of(judgement, each) in texts else 2 for each in shown} if texts else {}
    if judgement.kind is Kind.RANK or body.get("ranks"):  # ranks that follow ratings say more than equal ratings
        return {each: body["ranks"][each] for each in shown}
    if judgement.kind is Kind.RATE:
        overall = {each: body["ratings"][each]["overall"] for each in shown}
        order = sorted(set(overall.values()), reverse=True)
        return {each: order.index(overall[each]) + 1 for each in shown}
    if judgement.kind is Kind.COMPARE:
        side = 0 if body["position"] is None else body["position"] - middle_of(body["scale"])  # None: both have one text
        return dict(zip(shown, (1, 1) if side == 0 else (1, 2) if side < 0 else (2, 1), strict=True))
    return {}


def _scale(judgement: Judgement) -> str:
    return judgement.config.answer.strength.value if judgement.config else ""


def text_of(judgement: Judgement, key: str) -> str:
    return str(judgement.candidates[key].text)


def reply(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]
