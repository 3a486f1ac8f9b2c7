"""Texts to work on: the prose of this folder cut into prompts of exact length, no two alike, so that nobody's prefix cache helps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

PROSE = Path(__file__).with_name("prose.txt")


class Work:
    """Prompts as ids. Every call gives new ones; the same calls in the same order give the same ones in every run of the benchmark."""

    def __init__(self, tokenize: Callable[[str], list[int]]) -> None:
        self.text = PROSE.read_text(encoding="utf-8")
        self.prose = tokenize(self.text)
        self._words = sorted(set(self.prose))
        self._random = random.Random(2)
        self._count = itertools.count()

    def prompts(self, count: int, length: int) -> list[list[int]]:
        """`count` lists of `length` ids: two ids that number the prompt, then prose."""
        return [self._prompt(length) for _ in range(count)]

    def _prompt(self, length: int) -> list[int]:
        first, second = divmod(next(self._count), len(self._words))
        opening = [self._words[second], self._words[first % len(self._words)]][:length]
        start = self._random.randrange(len(self.prose))
        return [*opening, *itertools.islice(itertools.cycle(self.prose[start:] + self.prose[:start]), length - len(opening))]
