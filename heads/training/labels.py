"""What a rater answers about a rule. Imports no torch, so that data files are read at once."""

from __future__ import annotations

import enum


class RuleLabel(enum.Enum):
    """A rater's five answers to "was the rule broken?" (Sparrow)."""

    DEFINITELY_BROKEN = "definitely-broken"
    PROBABLY_BROKEN = "probably-broken"
    UNSURE = "unsure"
    PROBABLY_FOLLOWED = "probably-followed"
    DEFINITELY_FOLLOWED = "definitely-followed"

    @property
    def target(self) -> float | None:
        """1 if broken, 0 if followed, None if the rater was not sure: such a row is dropped."""
        if self is RuleLabel.UNSURE:
            return None
        return float(self in (RuleLabel.DEFINITELY_BROKEN, RuleLabel.PROBABLY_BROKEN))
