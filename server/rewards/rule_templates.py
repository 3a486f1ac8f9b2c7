"""Rule templates: the question around a rule, as ids of this tokenizer. Knows no rules and no heads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.rewards.configurations import ConfigurationFile, check_keys, text_of

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
    """The parts of a template file. Raises InvalidArgument that names the key."""
    values = check_keys(file.values, ("template", "answers"), file.reference, FIELD)
    text = text_of(values, "template", file.reference, FIELD)
    dialogue, _, question = text.partition("{dialogue}")
    before, found, after = question.partition("{rule}")
    if dialogue or not found or "{dialogue}" in question or "{rule}" in after:
        raise InvalidArgument(
            f"template {file.reference} must start with {{dialogue}} and hold each of {{dialogue}} and {{rule}} once",
            field="rules.template",
        )
    where = f"answers of template {file.reference}"
    answers = check_keys(values.get("answers"), ("violated", "followed"), where, "rules.answers")
    violated, followed = (_spellings(answers, key, where) for key in ("violated", "followed"))
    if both := set(violated) & set(followed):
        raise InvalidArgument(f"the two answers of template {file.reference} share a spelling: {min(both)!r}", field="rules.answers")
    return TemplateText(file, before, after, violated, followed)


def _spellings(answers: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    """One text or a list of texts."""
    listed = answers.get(key)
    if not isinstance(listed, list):
        return (text_of(answers, key, where, "rules.answers"),)
    if not 1 <= len(listed) <= MAX_SPELLINGS:
        raise InvalidArgument(f"{key} of {where} must have 1 to {MAX_SPELLINGS} spellings: {len(listed)}", field=f"rules.answers.{key}")
    return tuple(text_of({key: spelling}, key, where, "rules.answers") for spelling in listed)


def _answer(encoder: Encoder, spellings: Iterable[str], vocab_size: int | None) -> int:
    """The first spelling that is one token: never a sum over several, and never the unknown token, which stands for anything."""
    for spelling in spellings:
        token = encoder.single_token(spelling)
        if token is not None and (vocab_size is None or token < vocab_size):
            return token
    raise Unfit(f"no spelling of an answer is one token that the model knows: {', '.join(map(repr, spellings))}")
