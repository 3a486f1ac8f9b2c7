"""Text behind other text: ids that continue a text, and the text of such ids.

A SentencePiece tokenizer puts a space before the first word of a text and takes it off again when it decodes, so a text tokenised by itself
is always the beginning of one: behind "f(", "x)" would stand as "f( x)". A lead stands here for what comes before. Tokenizers that treat a
text alike wherever it stands (byte-level ones) need none. Those that cannot continue a text (WordPiece splits "f(x)" into words and puts
spaces between them) are told by what comes back: a text whose characters would change is refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from polyhead.heads.format.errors import InvalidArgument

Decode = Callable[[Sequence[int]], str]
Write = Callable[[str], list[int]]

_PROBES = ("a", " a", "  a", "a b", "\n", "\n a", "7", "x)", " Paris", "é")  # as characters compose
_LEADS = ("\n", ".", ";", "|", "\x01")  # no letters or digits: a piece of a word would be joined to those
_MAX_SPARE = 1000  # ids of the vocabulary that are tried where none of these can be written
_SHOWN = 60  # characters


class Coder(Protocol):
    """The part of a tokenizer that this file needs."""

    def encode(self, text: str, special_tokens: bool = True) -> list[int]: ...
    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


@dataclass(frozen=True, slots=True)
class _Lead:
    """Text that stands for what comes before."""

    text: str
    ids: tuple[int, ...]


class Continuation:
    """How one tokenizer writes text behind other text. `is_plain`: as it writes any text, so nothing is added or checked."""

    def __init__(
        self, coder: Coder, *, kind: str = "", special_ids: frozenset[int] = frozenset(), spare_ids: Iterable[int] = ()
    ) -> None:
        """`special_ids`: tokens that are no text, without the one for unknown text. `kind` names the tokenizer in errors."""
        self._coder = coder
        self._kind = kind
        self._special_ids = special_ids
        self.is_plain = all(map(self._is_alike_everywhere, _PROBES))
        self._leads = () if self.is_plain else tuple(self._usable_leads(spare_ids))

    @property
    def context(self) -> list[int]:
        """Ids that a continuation's own are decoded behind; none if that changes nothing."""
        return list(self._leads[0].ids) if self._leads else []

    def decode(self, ids: Sequence[int]) -> str:
        """Text that ids add to the text before them, special tokens left out."""
        if not self._leads:
            return self._coder.decode(ids)
        lead = self._leads[0]
        return self._coder.decode([*lead.ids, *ids])[len(lead.text) :]

    def encode(self, text: str, field: str, write: Write | None = None, unwritten: str = "") -> list[int]:
        """Ids of a text behind another one, no special tokens around them. InvalidArgument if the text would not be what they say.

        `write` stands in for the tokenizer's own way from text to ids; `unwritten` is a character that it leaves out.
        """
        write = write or self._write
        if self.is_plain or not text:
            return write(text)
        for lead in self._leads:
            ids, said = write(lead.text + text), text.replace(unwritten, "") if unwritten else text
            if ids[: len(lead.ids)] == list(lead.ids) and self._says(ids, lead.text + said):
                return ids[len(lead.ids) :]
        raise InvalidArgument(self._refusal(text), field=field)

    def _write(self, text: str) -> list[int]:
        return self._coder.encode(text, special_tokens=False)

    def _says(self, ids: list[int], text: str) -> bool:
        """Whether ids are this text, composed characters or not. Around special tokens each tokenizer has its own way with spaces."""
        is_marked = not self._special_ids.isdisjoint(ids)
        return is_marked or _composed(self._coder.decode(ids, skip_special_tokens=False)) == _composed(text)

    def _is_alike_everywhere(self, text: str) -> bool:
        ids, before = self._written(text), self._written("a")
        return self._coder.decode(ids) == text and self._coder.decode([*before, *ids]) == "a" + text

    def _usable_leads(self, spare_ids: Iterable[int]) -> Iterator[_Lead]:
        """Texts that come back as they are written; a word of the vocabulary if it has no punctuation."""
        texts = (*_LEADS, *(" " + text for text in _LEADS))  # some tokenizers never take their space off again
        found = [lead for text in texts if (lead := self._lead(text))]
        spare = (self._lead(self._coder.decode([token])) for token in islice(spare_ids, _MAX_SPARE))
        yield from found or islice((lead for lead in spare if lead and lead.text.strip()), 1)

    def _lead(self, text: str) -> _Lead | None:
        ids = self._written(text)
        is_written = bool(ids) and self._special_ids.isdisjoint(ids) and self._coder.decode(ids) == text
        return _Lead(text, tuple(ids)) if is_written else None

    def _written(self, text: str) -> list[int]:
        """Ids of a text by itself, none if the tokenizer has none for it."""
        try:
            return self._coder.encode(text, special_tokens=False)
        except InvalidArgument:
            return []

    def _refusal(self, text: str) -> str:
        becomes = self.decode(self._written(text))
        kind = f" ({self._kind})" if self._kind else ""
        return f"the model's tokenizer{kind} cannot write this text behind another one: {text[:_SHOWN]!r} would become {becomes[:_SHOWN]!r}"


def _composed(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFC", text)
