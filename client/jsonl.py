"""Prompts and completions from JSON lines. Errors name the line. Sends nothing.

    {"prompt": "a text or a list of token ids"}
    {"messages": [{"role": "user", "content": "Hi"}]}

A reference has a "completion", too. Other keys are passed over: data files carry ids and labels of their own.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyhead.client.errors import InvalidArgument, PolyheadError
from polyhead.client.wire.prompts import Prompt, prompt_message, token_ids

__all__ = ["BATCH_ITEMS", "DataFile", "read_prompts", "read_references"]

BATCH_ITEMS = 64  # to score in one call: its answer echoes every id


@dataclass(slots=True)
class DataFile:
    """What a file holds, and on which lines."""

    items: list[Any] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)  # of the items, from 1

    @contextlib.contextmanager
    def naming_lines(self, start: int = 0) -> Iterator[None]:
        """An error about `prompts[3]` or `items[3]`, counted from the item `start`, becomes one about a line of the file."""
        try:
            yield
        except PolyheadError as error:
            found = re.match(r"(?:prompts|items)\[(\d+)\]", error.field)
            if found is None:
                raise
            raise InvalidArgument(f"line {self.lines[start + int(found[1])]} of --data: {error.message}", field="data") from error


def read_prompts(path: Path) -> DataFile:
    """Its items are prompts. InvalidArgument, naming the line, for one that is none, and for a file without lines."""
    file = DataFile()
    for number, line in _lines(path):
        with _at(number):
            file.items.append(_prompt(line))
            file.lines.append(number)
    return file


def read_references(path: Path) -> DataFile:
    """Its items are (prompt, completion) pairs."""
    file = DataFile()
    for number, line in _lines(path):
        with _at(number):
            file.items.append((_prompt(line), _completion(line)))
            file.lines.append(number)
    return file


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Blank lines are passed over."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidArgument(f"cannot read --data: {path} ({error.strerror})", field="data") from None
    except UnicodeDecodeError:
        raise InvalidArgument(f"--data is not UTF-8 text: {path}", field="data") from None
    if not text.strip():
        raise InvalidArgument(f"--data holds no lines: {path}", field="data")
    numbered = enumerate(text.split("\n"), 1)  # not splitlines: a JSON text may hold other line separators
    yield from ((number, line) for number, line in numbered if line.strip())


@contextlib.contextmanager
def _at(number: int) -> Iterator[None]:
    try:
        yield
    except (TypeError, InvalidArgument) as error:
        raise InvalidArgument(f"line {number} of --data: {error}", field="data") from None


def _parse(line: str) -> dict[str, Any]:
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidArgument("not JSON") from None
    if not isinstance(parsed, dict):
        raise InvalidArgument("not a JSON object")
    return parsed


def _prompt(line: str) -> Prompt:
    parsed = _parse(line)
    given = [key for key in ("prompt", "messages") if key in parsed]
    if len(given) != 1:
        raise InvalidArgument('it must have either "prompt" or "messages"')
    value = parsed[given[0]]
    is_conversation = isinstance(value, list) and bool(value) and isinstance(value[0], dict)
    if not isinstance(value, (str, list)) or is_conversation != (given[0] == "messages"):
        forms = "a list of messages" if given[0] == "messages" else "a text or a list of token ids"
        raise InvalidArgument(f'"{given[0]}" must be {forms}')
    prompt_message(value, given[0])
    return value


def _completion(line: str) -> str | list[int]:
    value = _parse(line).get("completion")
    if isinstance(value, str) and value:
        return value
    return token_ids(value, '"completion"', forms="a text or a list of token ids")
