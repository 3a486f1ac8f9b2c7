"""Rule sets and rule templates: versioned files, and the ids that ask a rule head about one rule.

One tokenisation path, for the server and for trainers' tools alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from polyhead.heads.errors import InvalidArgument
from polyhead.heads.manifest import check_name
from polyhead.server.configurations import (
    Configuration,
    ConfigurationFile,
    ConfigurationKind,
    add_once,
    check_keys,
    find_newest,
    read_file,
    text_of,
)

SHIPPED = Path(__file__).parent / "rule_files"
DEFAULT_SET = "example-rules"
DEFAULT_TEMPLATE = "example-rule-prompt@1"
MAX_RULE_CHARACTERS = 2000
FIELD = "rules"


class Encoder(Protocol):
    """The part of a tokenizer that this file needs."""

    def encode(self, text: str, special_tokens: bool = True) -> list[int]: ...


@dataclass(frozen=True, slots=True)
class Rule:
    """One sentence that must hold."""

    rule_id: str
    text: str
    category: str = ""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """A versioned list of rules."""

    reference: str  # "example-rules@1"
    rules: Mapping[str, Rule]  # by id, in file order
    file: ConfigurationFile


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

    def suffix(self, encoder: Encoder, rule_text: str) -> tuple[int, ...]:
        """Ids that follow a dialogue to ask about one rule."""
        return (*self.before, *encoder.encode(self.joint + rule_text, special_tokens=False), *self.after)


class RuleBook:
    """All rule sets and templates that the server knows."""

    def __init__(self, encoder: Encoder, files: Iterable[Path] = ()) -> None:
        self._encoder = encoder
        self.sets: dict[str, RuleSet] = {}
        self.templates: dict[str, RuleTemplate] = {}
        for path in [*sorted(SHIPPED.glob("*.yaml")), *files]:
            file = read_file(path, FIELD)
            if "rules" in file.values:
                add_once(self.sets, file.reference, _rule_set(file), FIELD)
            else:
                add_once(self.templates, file.reference, self._template(file), FIELD)

    def find_set(self, reference: str, field: str) -> RuleSet:
        """A set by "name@version", or the newest version by "name"."""
        return find_newest(self.sets, reference, "rule set", field)

    def find_template(self, reference: str, field: str) -> RuleTemplate:
        """A template by "name@version", or the newest version by "name"."""
        return find_newest(self.templates, reference, "rule template", field)

    def questions(self, template: RuleTemplate, rules: Iterable[Rule]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(rule id, ids after the dialogue) for each rule."""
        return tuple((rule.rule_id, template.suffix(self._encoder, rule.text)) for rule in rules)

    def suffixes(self, rules: Iterable[Rule]) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
        """The questions by template."""
        rules = list(rules)
        return {reference: self.questions(template, rules) for reference, template in self.templates.items()}

    def configurations(self) -> Iterator[Configuration]:
        """What the server lists of these files."""
        for rule_set in self.sets.values():
            rules = tuple((rule.rule_id, rule.text) for rule in rule_set.rules.values())
            yield rule_set.file.listed(ConfigurationKind.RULE_SET, rules)
        for template in self.templates.values():
            yield template.file.listed(ConfigurationKind.RULE_TEMPLATE)

    def _template(self, file: ConfigurationFile) -> RuleTemplate:
        values = check_keys(file.values, ("template", "answers"), file.reference, FIELD)
        text = text_of(values, "template", file.reference, FIELD)
        dialogue, _, question = text.partition("{dialogue}")
        before, found, after = question.partition("{rule}")
        if dialogue or not found or "{dialogue}" in question or "{rule}" in after:
            raise InvalidArgument(
                f"template {file.reference} must start with {{dialogue}} and hold each of {{dialogue}} and {{rule}} once",
                field="rules.template",
            )
        violated, followed = (self._answer(file, key) for key in ("violated", "followed"))
        if violated == followed:
            raise InvalidArgument(f"the two answers of template {file.reference} are one token", field="rules.answers")
        fixed = before.rstrip(" ")
        return RuleTemplate(
            reference=file.reference,
            before=tuple(self._encoder.encode(fixed, special_tokens=False)),
            after=tuple(self._encoder.encode(after, special_tokens=False)),
            joint=before[len(fixed) :],
            violated_token_id=violated,
            followed_token_id=followed,
            file=file,
        )

    def _answer(self, file: ConfigurationFile, key: str) -> int:
        where = f"answers of template {file.reference}"
        answers = check_keys(file.values.get("answers"), ("violated", "followed"), where, "rules.answers")
        answer = text_of(answers, key, where, "rules.answers")
        ids = self._encoder.encode(answer, special_tokens=False)
        if len(ids) != 1:
            raise InvalidArgument(
                f"answer {answer!r} of template {file.reference} is {len(ids)} tokens, not one", field=f"rules.answers.{key}"
            )
        return ids[0]


def _rule_set(file: ConfigurationFile) -> RuleSet:
    listed = check_keys(file.values, ("rules",), file.reference, FIELD)["rules"]
    if not isinstance(listed, list) or not listed:
        raise InvalidArgument(f"rule set {file.reference} has no rules", field="rules.rules")
    rules: dict[str, Rule] = {}
    for index, entry in enumerate(listed):
        where = f"rule {index + 1} of {file.reference}"
        values = check_keys(entry, ("id", "text", "category"), where, f"rules.rules[{index}]")
        rule_id = check_name(text_of(values, "id", where, "rules"), "rules.id")
        rule = Rule(rule_id, text_of(values, "text", where, "rules"), text_of(values, "category", where, "rules", ""))
        if not rule.text.strip() or len(rule.text) > MAX_RULE_CHARACTERS:
            raise InvalidArgument(f"{where} must have 1 to {MAX_RULE_CHARACTERS} characters", field="rules.text")
        if rule_id in rules:
            raise InvalidArgument(f"rule {rule_id!r} stands twice in {file.reference}", field="rules.id")
        rules[rule_id] = rule
    return RuleSet(file.reference, rules, file)
