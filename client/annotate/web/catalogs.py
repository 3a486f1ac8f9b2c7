"""Texts of the pages by language. English is the source; a key that another language lacks falls back to it."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from importlib.resources import files

from polyhead.client.annotate.storage.database import sha256

DEFAULT = "en"
NAMES = {"en": "English", "zh-Hans": "简体中文"}  # each in itself
RIGHT_TO_LEFT = ("ar", "he", "fa", "ur")


class Catalog:
    """One language's texts."""

    def __init__(self, locale: str, words: Mapping[str, str], sha: bytes) -> None:
        self.locale = locale
        self.words = words
        self.sha256 = sha  # of the file: stored with each answer, since a translation can turn a question round

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key, its {names} filled in."""
        return re.sub(r"\{(\w+)\}", lambda found: str(values.get(found[1], found[0])), self.words[key])

    def has(self, key: str) -> bool:
        return key in self.words

    @property
    def direction(self) -> str:
        return "rtl" if self.locale.split("-")[0] in RIGHT_TO_LEFT else "ltr"


@functools.cache
def catalog(locale: str) -> Catalog:
    """The catalog of a language that there is; of any other one, the English one."""
    chosen = locale if locale in NAMES else DEFAULT
    english, text = _read(DEFAULT), _read(chosen)
    return Catalog(chosen, {**json.loads(english), **json.loads(text)}, sha256(text))


def preferred(accept_language: str) -> str:
    """The first language of an Accept-Language header that there is."""
    for part in accept_language.split(","):
        tag = part.split(";")[0].strip().lower()
        if tag.startswith("zh"):
            return "zh-Hans"
        if tag.startswith("en"):
            return "en"
    return DEFAULT


def _read(locale: str) -> str:
    return files(__package__).joinpath("locales", f"{locale}.json").read_text(encoding="utf-8")
