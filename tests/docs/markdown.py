"""Small pieces of Markdown that the generated pages are made of."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterable, Sequence

WIDTH = 150


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; a bar or a line break inside a cell does not end it."""
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def code(text: str) -> str:
    """Between backticks; nothing stays nothing."""
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """Paragraphs, wrapped."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(each.split()), WIDTH, break_long_words=False, break_on_hyphens=False) for each in paragraphs)


def plain(text: str) -> str:
    """Prose whose angle and square brackets are no HTML and no links; what stands between backticks stays."""
    parts = text.split("`")
    parts[::2] = [part.replace("<", "\\<").replace("[", "\\[").replace("]", "\\]") for part in parts[::2]]
    return "`".join(parts)
