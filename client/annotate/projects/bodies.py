"""What an answer of each kind must hold. Every error names the field. Knows neither the database nor the page.

    choose      {"choice": id | null, "tied": [id], "none_good": bool, "least_bad": id | null, "strength": 1..8 | null}
    rank        {"ranks": {id: 1..K}, "none_good": bool}      1 is best; equal numbers are ties; no number is left out: 1, 1, 2
    compare     {"scale": "hh8" | "stiennon9", "position": 1..8 | 1..9}       1: the left one is much better
    rate        {"ratings": {id: {"overall": 1..7, "flags": {name: bool}}}}      with `then_rank` "ranks" as of rank, too
    probe       {"verdict": 0..4, "broken_turns": [turn id]}  4: the rule was definitely broken
    rulecheck   {"verdict": 0..4, "quote": str}
    demonstrate {"text": str}
    edit        {"text": str, "candidate": id}

All may have "reasons": [name] and "comment": str.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from polyhead.client.annotate.problems import Invalid
from polyhead.client.annotate.projects.config import Kind, ProjectConfig, Strength

MAX_COMMENT = 4000
Body = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """What the person had before them: ids in slot order, and which of them stand for another one with the same text."""

    ids: Sequence[str] = ()
    alias_of: dict[str, str] = field(default_factory=dict)  # id -> the id whose card it shares
    turn_ids: Sequence[str] = ()

    @property
    def cards(self) -> list[str]:
        """One id a card."""
        return [each for each in self.ids if each not in self.alias_of]

    def twins(self, card: str) -> list[str]:
        """The others with the text of this card."""
        return [each for each, first in self.alias_of.items() if first == card]


def check_body(config: ProjectConfig, given: Any, shown: Shown) -> Body:
    """The body as it is stored: exactly the keys of its kind. Invalid names what is wrong."""
    if not isinstance(given, dict):
        raise Invalid("must be an object", field="body")
    checked = _CHECKS[config.kind](config, given, shown)
    reasons = _list(given, "reasons")
    known = config.answer.reasons
    if any(reason not in known for reason in reasons) or len(set(reasons)) != len(reasons):
        raise Invalid(f"must be some of {', '.join(known)}", field="body.reasons")
    comment = _text(given, "comment", 0, MAX_COMMENT)
    unknown = sorted(given.keys() - checked.keys() - {"reasons", "comment"})
    if unknown:
        raise Invalid("unknown key", field=f"body.{str(unknown[0])[:40]}")
    return {**checked, "reasons": reasons, "comment": comment}


def _choose(config: ProjectConfig, given: Body, shown: Shown) -> Body:
    choice, tied = _card(given, "choice", shown, optional=True), _list(given, "tied")
    none, least_bad = _flag(given, "none_good"), _card(given, "least_bad", shown, optional=True)
    if any(each not in shown.cards for each in tied) or len(set(tied)) != len(tied) or choice in tied:
        raise Invalid("must be other replies of this turn, each once", field="body.tied")
    if tied and not config.answer.tie:
        raise Invalid("ties are not offered", field="body.tied")
    if none and not config.answer.none:
        raise Invalid("is not offered", field="body.none_good")
    if none and (choice or tied):
        raise Invalid("a reply is marked as the best one, too", field="body.none_good")
    if none and config.answer.after_none.value == "least_bad" and least_bad is None:
        raise Invalid("is needed: the conversation goes on with it", field="body.least_bad")
    if not none and (least_bad is not None or not (choice or len(tied) > 1)):
        raise Invalid("mark the best reply, or that none is good", field="body.choice" if least_bad is None else "body.least_bad")
    strength = given.get("strength")
    most = config.answer.strength.num_points
    if strength is not None and (type(strength) is not int or not 1 <= strength <= most or len(shown.cards) != 2):
        raise Invalid(f"must be null or 1 to {most}, for two replies", field="body.strength")
    best = [each for each in (choice, *tied) if each]
    twins = [twin for each in best for twin in shown.twins(each)]  # the same text is equally good
    return {"choice": choice, "tied": [*tied, *twins], "none_good": none, "least_bad": least_bad, "strength": strength}


def _rank(config: ProjectConfig, given: Body, shown: Shown) -> Body:
    return {"ranks": _ranks(config, given, shown), "none_good": _flag(given, "none_good")}


def _ranks(config: ProjectConfig, given: Body, shown: Shown) -> dict[str, int]:
    ranks = given.get("ranks")
    if not isinstance(ranks, dict) or set(ranks) != set(shown.cards) or not all(type(rank) is int for rank in ranks.values()):
        raise Invalid("must give every reply a whole number", field="body.ranks")
    used = sorted(set(ranks.values()))
    if used != list(range(1, len(used) + 1)):
        raise Invalid("must be 1, 2, ... without a gap; equal numbers are ties", field="body.ranks")
    if len(used) < len(ranks) and not config.answer.tie:
        raise Invalid("ties are not offered", field="body.ranks")
    return {**ranks, **{twin: ranks[card] for card in shown.cards for twin in shown.twins(card)}}


def _compare(config: ProjectConfig, given: Body, shown: Shown) -> Body:
    position, most = given.get("position"), config.answer.strength.num_points
    if position is None and len(shown.cards) == 1:
        return {"scale": config.answer.strength.value, "position": None}  # both have one text
    if type(position) is not int or not 1 <= position <= most:
        raise Invalid(f"must lie between 1 and {most}", field="body.position")
    if given.get("scale", config.answer.strength.value) != config.answer.strength.value:
        raise Invalid(f"must be {config.answer.strength.value}", field="body.scale")
    return {"scale": config.answer.strength.value, "position": position}


def _rate(config: ProjectConfig, given: Body, shown: Shown) -> Body:
    ratings = given.get("ratings")
    if not isinstance(ratings, dict) or set(ratings) != set(shown.cards):
        raise Invalid("must have every reply", field="body.ratings")
    checked = {}
    for slot, card in enumerate(shown.cards):
        rating, where = ratings[card], f"body.ratings[{slot}]"
        if not isinstance(rating, dict) or type(rating.get("overall")) is not int or not 1 <= rating["overall"] <= 7:
            raise Invalid("must lie between 1 and 7", field=f"{where}.overall")
        flags = rating.get("flags", {})
        if not isinstance(flags, dict) or set(flags) != set(config.flag_names) or not all(type(value) is bool for value in flags.values()):
            raise Invalid("every statement needs yes or no", field=f"{where}.flags")
        for each in (card, *shown.twins(card)):
            checked[each] = {"overall": rating["overall"], "flags": flags}
    return {"ratings": checked, **({"ranks": _ranks(config, given, shown)} if config.answer.then_rank else {})}


def _probe(config: ProjectConfig, given: Body, shown: Shown) -> Body:
    broken = _list(given, "broken_turns")
    if any(each not in shown.turn_ids for each in broken) or len(set(broken)) != len(broken):
        raise Invalid("must be turns of this conversation", field="body.broken_turns")
    if not shown.turn_ids:
        raise Invalid("there is no reply yet", field="body.verdict")
    return {"verdict": _verdict(given), "broken_turns": broken}


def _rulecheck(config: ProjectConfig, given: Body, shown: Shown) -> Body:
    return {"verdict": _verdict(given), "quote": _text(given, "quote", 0, MAX_COMMENT)}


def _demonstrate(config: ProjectConfig, given: Body, shown: Shown) -> Body:
    return {"text": _text(given, "text", config.text.min_chars, config.text.max_chars)}


def _edit(config: ProjectConfig, given: Body, shown: Shown) -> Body:
    return {**_demonstrate(config, given, shown), "candidate": _card(given, "candidate", shown)}


_CHECKS: dict[Kind, Callable[[ProjectConfig, Body, Shown], Body]] = {
    Kind.CHOOSE: _choose,
    Kind.RANK: _rank,
    Kind.COMPARE: _compare,
    Kind.RATE: _rate,
    Kind.PROBE: _probe,
    Kind.RULECHECK: _rulecheck,
    Kind.DEMONSTRATE: _demonstrate,
    Kind.EDIT: _edit,
}


def middle_of(scale: str) -> float:
    """The position that prefers neither."""
    return (Strength(scale).num_points + 1) / 2


def _verdict(given: Body) -> int:
    verdict = given.get("verdict")
    if type(verdict) is not int or not 0 <= verdict <= 4:
        raise Invalid("must lie between 0 and 4", field="body.verdict")
    return verdict


def _card(given: Body, key: str, shown: Shown, *, optional: bool = False) -> str | None:
    value = given.get(key)
    if (value is None and optional) or (isinstance(value, str) and value in shown.cards):
        return value
    raise Invalid("must be a reply of this turn", field=f"body.{key}")


def _flag(given: Body, key: str) -> bool:
    value = given.get(key, False)
    if type(value) is not bool:
        raise Invalid("must be true or false", field=f"body.{key}")
    return value


def _list(given: Body, key: str) -> list[str]:
    value = given.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Invalid("must be a list of texts", field=f"body.{key}")
    return value


def _text(given: Body, key: str, least: int, most: int) -> str:
    value = given.get(key, "")
    if not isinstance(value, str) or not least <= len(value.strip()) or len(value) > most:
        raise Invalid(f"must be a text of {least} to {most} characters", field=f"body.{key}")
    if any(0xD800 <= ord(letter) <= 0xDFFF or letter == "\0" for letter in value):
        raise Invalid("holds characters that are no text", field=f"body.{key}")
    return value
