"""An export as somebody asks for it, on a page or at the command line. What is wrong is named by its option."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from polyhead.client.annotate.exports.judgements import EXCLUSIONS, Filters
from polyhead.client.annotate.problems import Invalid


class Ties(enum.StrEnum):
    DROP = "drop"  # two replies that are equally good make no row
    MARGIN0 = "margin0"  # they make a row with margin 0


@dataclass(frozen=True)
class Shape:
    """How rows are written."""

    ties: Ties = Ties.DROP
    keep_unsure: bool = False  # verdicts "unsure" as rows of `rules`
    has_ids: bool = False  # token ids beside the texts, as they were sampled


SHAPED = {  # formats that have a use for each choice
    "ties": ("trl-preference",),
    "keep_unsure": ("rules",),
    "ids": ("polyhead-pairs", "polyhead-ranks"),
}


@dataclass(frozen=True)
class Options:
    """What is taken, and how it is written."""

    filters: Filters = field(default_factory=Filters)
    shape: Shape = field(default_factory=Shape)

    def in_words(self) -> list[str]:
        """Each choice that is not the default, and what is excluded, as lines of the export's card."""
        filters, shape = self.filters, self.shape
        said = [f"excluded: {each}, {EXCLUSIONS[each]}" for each in filters.exclude]
        said += [f"round {filters.round_number} alone"] if filters.round_number else []
        said += [f"received at {time_text(filters.since_ms)} (UTC) or later"] if filters.since_ms else []
        said += [f"agreement of at least {filters.least_agreement:g} about each thing"] if filters.least_agreement else []
        said += ["an adjudicator's decision in place of the answers about its item"] if filters.adjudicated else []
        said += ["ties: rows with margin 0; where no scale was asked, a preference has margin 1"] if shape.ties is Ties.MARGIN0 else []
        said += ["unsure verdicts are rows"] if shape.keep_unsure else []
        said += ["token ids as they were sampled"] if shape.has_ids else []
        return said


def options_of(
    *, format_name: str, round_number: int = 0, until_seq: int = 0, exclude: Sequence[str] = ("leak", "gold"), since: str = "",
    min_agreement: float = 0.0, adjudicated: bool = False, ties: str = "drop", keep_unsure: bool = False, ids: bool = False,
) -> Options:  # fmt: skip
    """Checked. Invalid names the option."""
    if unknown := [each for each in exclude if each not in EXCLUSIONS]:
        raise Invalid(f"cannot leave out: {unknown[0][:40]!r}\nhint: {', '.join(EXCLUSIONS)}", field="exclude")
    if not 0 <= min_agreement <= 1:
        raise Invalid(f"the least agreement must lie between 0 and 1: {min_agreement:g}", field="min_agreement")
    if ties not in list(Ties):
        raise Invalid(f"ties must be {' or '.join(Ties)}: {ties[:40]!r}", field="ties")
    for name, is_asked in (("ties", ties != Ties.DROP), ("keep_unsure", keep_unsure), ("ids", ids)):
        if is_asked and format_name not in SHAPED[name]:
            option = name.replace("_", "-")
            raise Invalid(f"{format_name} has no use for --{option}\nhint: {' and '.join(SHAPED[name])} have", field=name)
    filters = Filters(round_number, until_seq, tuple(exclude), since_ms(since), min_agreement, adjudicated)
    return Options(filters, Shape(Ties(ties), keep_unsure, ids))


def since_ms(text: str) -> int:
    """A day, or a time of it, in UTC unless it says otherwise; 0 for nothing."""
    if not text:
        return 0
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"not a time: {text[:40]!r}\nhint: 2026-11-29, or 2026-11-29T14:00, in UTC", field="since") from None
    return max(0, round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000))


def time_text(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M}"
