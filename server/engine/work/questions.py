"""Rule questions as token ids: what a rule head is asked after a dialogue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RuleQuestion:
    """One rule, ready to be asked after a dialogue."""

    rule_id: str
    suffix: tuple[int, ...]  # token ids of template and rule, after the dialogue


@dataclass(frozen=True, slots=True)
class RuleQuestions:
    """The rules of one request, worded for every template that a rule head may name."""

    rule_set: str  # "example-rules@1", "" for inline rules
    by_template: Mapping[str, tuple[RuleQuestion, ...]]
