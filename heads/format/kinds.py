"""What kinds of heads there are, and the one table of what sets them apart. Standard library only; knows no weights and no messages.

A new kind is a member of `HeadKind` and a row of `KINDS`; what is computed for it is server/engine/schedule/scorer.py.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass


class HeadKind(enum.Enum):
    """What a head computes from boundary states."""

    POLICY = "policy"  # next-token logits, (vocab,) per position
    PREFERENCE = "preference"  # one scalar, at the token that the manifest's `read` names
    RULE = "rule"  # probability that a rule was broken, from two answer tokens' logits behind each rule's question
    VALUE = "value"  # one scalar per token of the completion

    @property
    def facts(self) -> KindFacts:
        return KINDS[self]

    @property
    def has_logits(self) -> bool:
        """Whether the output is the vocabulary (the family's own output projection) and not a `score` linear."""
        return self.facts.has_logits


class OutputKind(enum.Enum):
    """Where a head's output projection comes from."""

    TIED = "tied"  # the trunk's embedding; the file stores nothing
    OWN = "own"  # `lm_head.weight` in the file
    SCORE = "score"  # `score.weight`, (1, d_model), in the file


class ReadPosition(enum.Enum):
    """Which token a preference is read at."""

    LAST = "last"  # with `pad_token_id`: the last one that is not padding
    EOS = "eos"
    APPEND = "append"  # one given token is appended after the completion and read


class Unfinished(enum.Enum):
    """What a preference head answers for a sample that did not end by itself."""

    READ_LAST = "read_last"
    OMIT = "omit"


@dataclass(frozen=True, slots=True)
class KindFacts:
    """One row of the table."""

    has_logits: bool  # output over the vocabulary; else a scalar
    score: str  # the field of HeadScore.result that holds its answer
    manifest_fields: tuple[str, ...]  # of head.json: those that a trainer may set and that mean something for this kind alone


KINDS: Mapping[HeadKind, KindFacts] = {
    HeadKind.POLICY: KindFacts(True, "policy", ()),
    HeadKind.PREFERENCE: KindFacts(False, "preference", ("bias", "scale", "read", "append_token_id", "pad_token_id", "unfinished")),
    HeadKind.RULE: KindFacts(True, "rule", ("template", "violated_token_id", "followed_token_id")),
    HeadKind.VALUE: KindFacts(False, "value", ("bias", "scale")),
}

SCORE_NAME = "score.weight"  # the tensor of a scalar output, (1, d_model)
DEFAULT_HEAD = "policy"  # the name that a request without one means; it cannot leave the active set
FIRST_HEADS: Mapping[str, HeadKind] = {  # made of the model itself at the first start, by name
    DEFAULT_HEAD: HeadKind.POLICY,
    "reference": HeadKind.POLICY,
    "rule": HeadKind.RULE,
    "preference": HeadKind.PREFERENCE,
    "value": HeadKind.VALUE,
}


def takes_output(kind: HeadKind, output: OutputKind) -> bool:
    """Whether a head of this kind can have that output: the vocabulary's, or a scalar."""
    return kind.has_logits == (output is not OutputKind.SCORE)


def model_output(kind: HeadKind, *, tied: bool) -> OutputKind:
    """The output that the model itself gives a head of this kind."""
    if not kind.has_logits:
        return OutputKind.SCORE
    return OutputKind.TIED if tied else OutputKind.OWN
