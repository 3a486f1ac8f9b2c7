"""Evidence: what a reply rests on, or what an item is to be judged by, as cards that people read. Checked when a file brings it.

{"title", "url", "snippet", "query"}      texts; one of the first three at least. A list of them: several cards
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from polyhead.client.annotate.problems import Invalid

Card = dict[str, str]
MAX_CARDS = 9
LONGEST = {"title": 500, "url": 2000, "snippet": 8000, "query": 500}  # characters


def read_cards(given: Any, name: str, wrong: Callable[[str], Invalid]) -> list[Card]:
    """The cards of one key of a line. `wrong` makes the error, which names the key."""
    each = given if isinstance(given, list) else [given]
    if not 1 <= len(each) <= MAX_CARDS:
        raise wrong(f"'{name}' must be a card, or a list of 1 to {MAX_CARDS}: {len(each)}")
    return [_card(card, f"{name}[{index}]" if isinstance(given, list) else name, wrong) for index, card in enumerate(each)]


def _card(given: Any, name: str, wrong: Callable[[str], Invalid]) -> Card:
    if not isinstance(given, dict):
        raise wrong(f"'{name}' must be an object of {', '.join(LONGEST)}")
    if unknown := sorted(given.keys() - LONGEST.keys()):
        raise wrong(f"'{name}' has an unknown key {unknown[0][:40]!r}; known are {', '.join(LONGEST)}")
    for key, value in given.items():
        if not isinstance(value, str) or len(value) > LONGEST[key]:
            raise wrong(f"'{name}.{key}' must be a text of at most {LONGEST[key]} characters")
    if given.get("url") and not _is_web(given["url"]):
        raise wrong(f"'{name}.url' must begin with http:// or https://: {given['url'][:40]!r}")
    card = {key: given[key] for key in LONGEST if given.get(key, "").strip()}
    if not card.keys() & {"title", "url", "snippet"}:
        raise wrong(f"'{name}' must have a 'title', a 'url' or a 'snippet'")
    return card


def _is_web(url: str) -> bool:
    """What a page makes a link of. Of other schemes some run scripts."""
    try:
        return bool(re.fullmatch(r"https?://\S+", url) and urlsplit(url).hostname)
    except ValueError:
        return False
