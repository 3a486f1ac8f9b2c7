"""Paragraphs, tables and quotations of a page, as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 150  # of a line of prose
MOST_QUOTED = 110  # characters of a reply


def paragraph(text: str) -> str:
    """Lines of prose."""
    return "\n".join(textwrap.wrap(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False))


def bullet(text: str) -> str:
    """One point of a list."""
    return "\n".join(textwrap.wrap(f"- {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A line for each row."""
    return "\n".join([f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def quoted(reply: str) -> str:
    """One line without Markdown's own marks."""
    line = "".join(each for each in " ".join(reply.split()) if each not in "*_`|<>[]\\")
    return f"{line[:MOST_QUOTED].strip()} ..." if len(line) > MOST_QUOTED else line.strip() or "(nothing)"
