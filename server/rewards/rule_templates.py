"""Rule templates: the question around a rule, as ids of this tokenizer. Knows no rules and no heads."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import BeforeValidator, Field

from polyhead.server.rewards.configurations import ConfigurationFile
from polyhead.server.validation import FileModel, own_error

FIELD = "rules"
MAX_SPELLINGS = 16


class Encoder(Protocol):
    """The part of a tokenizer that rules need."""

    def encode_behind_text(self, text: str, field: str, is_content: bool = False) -> list[int]: ...
    def single_token(self, text: str) -> int | None: ...


class Unfit(Exception):
    """A template is well-formed, but this model's tokenizer cannot ask it. The text says why."""


@dataclass(frozen=True, slots=True)
class RuleTemplate:
    """The question around a rule, as ids: `before` and `after` are the same for every rule."""

    reference: str  # "example-rule-prompt@1"
    before: tuple[int, ...]
    after: tuple[int, ...]
    joint: str  # white space between `before` and the rule; tokenised with the rule
    violated_token_id: int
    followed_token_id: int
    file: ConfigurationFile

    @property
    def answers(self) -> tuple[int, int]:
        """The tokens that say "broken" and "followed"."""
        return self.violated_token_id, self.followed_token_id

    def suffix(self, encoder: Encoder, rule_text: str, field: str) -> tuple[int, ...]:
        """Ids that follow a dialogue to ask about one rule; control tokens are the template's alone.

        InvalidArgument names the field if the tokenizer cannot write it.
        """
        return (*self.before, *encoder.encode_behind_text(self.joint + rule_text, field, is_content=True), *self.after)


@dataclass(frozen=True, slots=True)
class TemplateText:
    """A template file whose form is right, before any tokenizer has seen it."""

    file: ConfigurationFile
    before: str
    after: str
    violated: tuple[str, ...]  # spellings of the answer, the best first
    followed: tuple[str, ...]

    def fitted(self, encoder: Encoder, vocab_size: int | None) -> RuleTemplate:
        """As ids, all of them below `vocab_size` if that is known. Raises Unfit, or InvalidArgument for a text that cannot be written."""
        fixed = self.before.rstrip(" ")
        violated, followed = (_answer(encoder, spellings, vocab_size) for spellings in (self.violated, self.followed))
        template = RuleTemplate(
            reference=self.file.reference,
            before=tuple(encoder.encode_behind_text(fixed, "rules.template")),
            after=tuple(encoder.encode_behind_text(self.after, "rules.template")),
            joint=self.before[len(fixed) :],
            violated_token_id=violated,
            followed_token_id=followed,
            file=self.file,
        )
        if template.violated_token_id == template.followed_token_id:
            raise Unfit(f"the tokenizer has one token for both answers: {template.violated_token_id}")
        if vocab_size is not None and max((*template.before, *template.after), default=0) >= vocab_size:
            raise Unfit(f"its text has a token outside the model's vocabulary of {vocab_size}")
        return template


def template_text(file: ConfigurationFile) -> TemplateText:
    """The parts of a template file. InvalidArgument names the file and the key."""
    given = file.checked(_TemplateFile)
    dialogue, _, question = given.template.partition("{dialogue}")
    before, found, after = question.partition("{rule}")
    if dialogue or not found or "{dialogue}" in question or "{rule}" in after:
        raise file.error("template", f"must start with {{dialogue}} and hold {{dialogue}} and {{rule}} once each: {given.template[:80]!r}")
    violated, followed = tuple(given.answers.violated), tuple(given.answers.followed)
    if both := set(violated) & set(followed):
        raise file.error("answers", f"must not share a spelling: {min(both)!r}")
    return TemplateText(file, before, after, violated, followed)


def _one_or_several(value: object) -> object:
    """YAML makes a truth value of a bare Yes and a number of a bare 1: both are refused, not turned into text."""
    if not isinstance(value, str | list):
        raise own_error("must be a text in quotes, or a list of them")
    return [value] if isinstance(value, str) else value


_Spellings = Annotated[list[str], Field(min_length=1, max_length=MAX_SPELLINGS), BeforeValidator(_one_or_several)]


class _Answers(FileModel):
    violated: _Spellings
    followed: _Spellings


class _TemplateFile(FileModel):
    template: str
    answers: _Answers


def _answer(encoder: Encoder, spellings: Iterable[str], vocab_size: int | None) -> int:
    """The first spelling that is one token: never a sum over several, and never the unknown token, which stands for anything."""
    for spelling in spellings:
        token = encoder.single_token(spelling)
        if token is not None and (vocab_size is None or token < vocab_size):
            return token
    raise Unfit(f"no spelling of an answer is one token that the model knows: {', '.join(map(repr, spellings))}")
