"""Training data from JSON lines, in the field names of TRL where it has some. Every error names the file, the line and the field.

    sft          {"prompt": P, "completion": C}
    preference   {"prompt": P, "chosen": C, "rejected": C}   or   {"prompt": P, "replies": [C, ...], "ranks": [2, 1, ...]}   (1 is best)
    rule         {"prompt": P, "completion": C, "rule": "no-insults", "label": "definitely-broken"}
    value        {"prompt": P, "completion": C, "reward": 0.5}

P is a text or a list of messages ("messages" is the same as "prompt"), C a text or a list with one assistant message. Other keys are the
file's own and are passed over, but for "group": metrics are shown for each group of rows apart.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from polyhead.heads.training.labels import RuleLabel

Messages = list[dict[str, str]]
Prompt = str | Messages
Completion = str | tuple[int, ...]  # a text, which is a whole reply; or the ids that were drawn, as they are: cut short or not
T = TypeVar("T")


class DataError(ValueError):
    """A data file cannot be used; the message names the file, the line and the field."""


@dataclass(frozen=True)
class Demonstration:
    """A reply to imitate."""

    prompt: Prompt
    completion: Completion
    place: str = field(default="", compare=False)  # "rows.jsonl, line 3"; "" of a row that is from no file


@dataclass(frozen=True)
class Comparison:
    """K replies to one prompt, ranked by a person: 1 is the best, equal ranks are a tie."""

    prompt: Prompt
    replies: tuple[Completion, ...]
    ranks: tuple[int, ...]
    group: str = ""
    place: str = field(default="", compare=False)  # "rows.jsonl, line 3"; "" of a row that is from no file


@dataclass(frozen=True)
class RuleJudgement:
    """Whether a reply broke a rule."""

    prompt: Prompt
    completion: Completion
    rule: str  # an id of the server's rule set
    label: RuleLabel
    group: str = ""
    place: str = field(default="", compare=False)  # "rows.jsonl, line 3"; "" of a row that is from no file


@dataclass(frozen=True)
class Rewarded:
    """A reply and what it was worth in the end."""

    prompt: Prompt
    completion: Completion
    reward: float
    place: str = field(default="", compare=False)  # "rows.jsonl, line 3"; "" of a row that is from no file


R = TypeVar("R", Demonstration, Comparison, RuleJudgement, Rewarded)


def read_demonstrations(path: Path) -> list[Demonstration]:
    """Rows of `polyhead train sft`."""
    return _read_rows(path, lambda row: Demonstration(_prompt(row), _completion(row, "completion")))


def read_comparisons(path: Path) -> list[Comparison]:
    """Rows of `polyhead train preference`."""
    return _read_rows(path, _comparison)


def read_judgements(path: Path) -> list[RuleJudgement]:
    """Rows of `polyhead train rule`."""
    return _read_rows(path, _judgement)


def read_rewarded(path: Path) -> list[Rewarded]:
    """Rows of `polyhead train value`."""
    return _read_rows(path, lambda row: Rewarded(_prompt(row), _completion(row, "completion"), _reward(row)))


def read_prompt_rows(path: Path) -> list[Prompt]:
    """Prompts to sample replies to; rows may hold more, such as a reply, which is passed over."""
    return _read(path, _prompt)


def read_texts(path: Path) -> list[str]:
    """Plain texts: {"text": T} a line, or a .txt with one a line."""
    if path.suffix == ".txt":
        return [line.strip() for _, line in _lines(path)]
    return _read(path, _plain_text)


def read_dialogue_rows(path: Path) -> list[Messages]:
    """Whole conversations."""
    return _read(path, _dialogue)


def _read_rows(path: Path, convert: Callable[[dict[str, Any]], R]) -> list[R]:
    """Rows that know their place."""
    return [replace(row, place=place) for place, row in _placed(path, convert)]


def _read(path: Path, convert: Callable[[dict[str, Any]], T]) -> list[T]:
    return [row for _, row in _placed(path, convert)]


def _placed(path: Path, convert: Callable[[dict[str, Any]], T]) -> list[tuple[str, T]]:
    rows = []
    for number, line in _lines(path):
        place = f"{path}, line {number}"
        try:
            row = json.loads(line)
            if not isinstance(row, dict):
                raise DataError("not a JSON object")
            rows.append((place, convert(row)))
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, DataError) else "not JSON"
            raise DataError(f"{place}: {reason}") from None
    if not rows:
        raise DataError(f"{path}: no rows")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text") from None
    yield from ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _plain_text(row: dict[str, Any]) -> str:
    text = row.get("text")
    if not isinstance(text, str) or not text.strip():
        raise DataError('"text" must be a text')
    return _unicode(text, "text")


def _dialogue(row: dict[str, Any]) -> Messages:
    prompt = _prompt(row)
    if isinstance(prompt, str) or not any(message["role"] == "user" for message in prompt):
        raise DataError("a dialogue must be a list of messages with at least one of the user")
    return prompt


def _comparison(row: dict[str, Any]) -> Comparison:
    prompt, group = _prompt(row), _group(row)
    if "replies" not in row:
        return Comparison(prompt, (_completion(row, "chosen"), _completion(row, "rejected")), (1, 2), group)
    replies, ranks = row["replies"], row.get("ranks")
    if not isinstance(replies, list) or len(replies) < 2:
        raise DataError('"replies" must be a list of at least two replies')
    if not isinstance(ranks, list) or len(ranks) != len(replies) or not all(type(rank) is int for rank in ranks):
        raise DataError(f'"ranks" must be a list of {len(replies)} whole numbers, 1 for the best')
    if len(set(ranks)) == 1:
        raise DataError('"ranks" are all equal: such a row says nothing')
    return Comparison(prompt, tuple(_text(reply, f"replies[{index}]") for index, reply in enumerate(replies)), tuple(ranks), group)


def _judgement(row: dict[str, Any]) -> RuleJudgement:
    rule, label = row.get("rule"), row.get("label")
    if not isinstance(rule, str) or not rule:
        raise DataError('"rule" must be the id of a rule')
    known = [each.value for each in RuleLabel]
    if isinstance(label, bool):
        label = (RuleLabel.DEFINITELY_BROKEN if label else RuleLabel.DEFINITELY_FOLLOWED).value
    if label not in known:
        raise DataError(f'"label" must be true (broken), false, or one of {", ".join(known)}: {str(label)[:40]!r}')
    return RuleJudgement(_prompt(row), _completion(row, "completion"), _unicode(rule, "rule"), RuleLabel(label), _group(row))


def _reward(row: dict[str, Any]) -> float:
    reward = row.get("reward")
    if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
        raise DataError(f'"reward" must be a finite number: {str(reward)[:40]!r}')
    return float(reward)


def _prompt(row: dict[str, Any]) -> Prompt:
    given = [key for key in ("prompt", "messages") if key in row]
    if len(given) != 1:
        raise DataError('a row must have either "prompt" or "messages"')
    value = row[given[0]]
    if isinstance(value, str) and value and given[0] == "prompt":
        return _unicode(value, "prompt")
    if not isinstance(value, list) or not value:
        raise DataError(f'"{given[0]}" must be a text or a list of messages')
    return [_message(message, f"{given[0]}[{index}]") for index, message in enumerate(value)]


def _message(message: Any, field: str) -> dict[str, str]:
    if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise DataError(f'"{field}" must have the texts "role" and "content"')
    return {key: _unicode(message[key], f"{field}.{key}") for key in ("role", "content")}


def _completion(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise DataError(f'a row must have "{key}"')
    return _text(row[key], key)


def _text(value: Any, field: str) -> str:
    if isinstance(value, list) and len(value) == 1:
        message = _message(value[0], f"{field}[0]")
        if message["role"] != "assistant":
            raise DataError(f'"{field}" must be the assistant\'s message: role {message["role"][:40]!r}')
        value = message["content"]
    if not isinstance(value, str) or not value:
        raise DataError(f'"{field}" must be a text, or a list with one assistant message')
    return _unicode(value, field)


def _group(row: dict[str, Any]) -> str:
    group = row.get("group", "")
    if not isinstance(group, str):
        raise DataError('"group" must be a text')
    return _unicode(group, "group")


def _unicode(text: str, field: str) -> str:
    """JSON can hold half of an emoji, which cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        raise DataError(f'"{field}" is not Unicode text: it holds a lone surrogate, {half!r} at character {error.start}') from None
    return text
