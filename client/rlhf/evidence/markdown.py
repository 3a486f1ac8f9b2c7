"""Paragraphs, tables and quotations of the page, as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence

from polyhead.client.rlhf.evidence.intervals import Interval

WIDTH = 150  # of a line of prose
MOST_QUOTED = 110  # characters of a reply

Form = Callable[[float], str]


def paragraph(text: str) -> str:
    """Lines of prose."""
    return "\n".join(textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False))


def bullet(text: str) -> str:
    """One point of a list."""
    return "\n".join(textwrap.wrap(f"- {text}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A line for each row."""
    return "\n".join([f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *(f"| {' | '.join(row)} |" for row in rows)])


def with_interval(interval: Interval, form: Form) -> str:
    """0.50 (0.41 to 0.59)."""
    return f"{form(interval.mean)} ({form(interval.low)} to {form(interval.high)})"


def quoted(reply: str) -> str:
    """One line without Markdown's own marks."""
    line = "".join(each for each in " ".join(reply.split()) if each not in "*_`|<>[]\\")
    return f"{line[:MOST_QUOTED].strip()} ..." if len(line) > MOST_QUOTED else line.strip() or "(nothing)"


def not_run(seeds: Mapping[str, Sequence[int]]) -> str:
    """What a plan has and no file: the seeds that are missing, by what is run; none are named where there is nothing to draw."""
    if not seeds:
        return "All that the plan has is here."
    by_seeds: dict[str, list[str]] = {}
    for name, own in seeds.items():
        missing = f" (seed{'s' * (len(own) > 1)} {', '.join(map(str, own))})" if own else ""
        by_seeds.setdefault(missing, []).append(name)
    return "Not run yet: " + "; ".join(f"{', '.join(names)}{missing}" for missing, names in by_seeds.items()) + "."
