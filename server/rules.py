"""Rule sets and rule templates: versioned files, and the ids that ask a rule head about one rule.

One tokenisation path, for the server and for trainers' tools alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from polyhead.heads.errors import InvalidArgument, NotFound
from polyhead.heads.manifest import check_name, parse_reference

SHIPPED = Path(__file__).parent / "rule_files"
DEFAULT_TEMPLATE = "example-rule-prompt@1"


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


@dataclass(frozen=True, slots=True)
class RuleTemplate:
    """The question around a rule, as ids: `before` and `after` are the same for every rule."""

    reference: str  # "example-rule-prompt@1"
    before: tuple[int, ...]
    after: tuple[int, ...]
    joint: str  # white space between `before` and the rule; tokenised with the rule
    violated_token_id: int
    followed_token_id: int

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
            self._load(path)

    def find_set(self, reference: str, field: str) -> RuleSet:
        """A set by "name@version", or the newest version by "name"."""
        name, version = parse_reference(reference, field)
        known = {parse_reference(key, field): rule_set for key, rule_set in self.sets.items()}
        versions = [number for other, number in known if other == name and version in (0, number)]
        if not versions:
            raise NotFound(f"no such rule set: {reference!r}", field=field)
        return known[(name, max(versions))]

    def suffixes(self, rules: Iterable[Rule]) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
        """By template: (rule id, ids after the dialogue) for each rule."""
        rules = list(rules)
        return {
            reference: tuple((rule.rule_id, template.suffix(self._encoder, rule.text)) for rule in rules)
            for reference, template in self.templates.items()
        }

    def _load(self, path: Path) -> None:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or "id" not in content or "version" not in content:
            raise InvalidArgument(f"a rule file needs id and version: {path.name}", field="rules")
        reference = f"{check_name(str(content['id']), 'rules.id')}@{int(content['version'])}"
        if "rules" in content:
            self.sets[reference] = _rule_set(reference, content)
        else:
            self.templates[reference] = self._template(reference, content)

    def _template(self, reference: str, content: dict[str, Any]) -> RuleTemplate:
        text = str(content.get("template", ""))
        dialogue, _, question = text.partition("{dialogue}")
        before, found, after = question.partition("{rule}")
        if dialogue or not found or "{dialogue}" in question:
            raise InvalidArgument(f"template {reference} must start with {{dialogue}} and hold {{rule}} once", field="rules.template")
        fixed = before.rstrip(" ")
        return RuleTemplate(
            reference=reference,
            before=tuple(self._encoder.encode(fixed, special_tokens=False)),
            after=tuple(self._encoder.encode(after, special_tokens=False)),
            joint=before[len(fixed) :],
            violated_token_id=self._answer(reference, content, "violated"),
            followed_token_id=self._answer(reference, content, "followed"),
        )

    def _answer(self, reference: str, content: dict[str, Any], key: str) -> int:
        answer = str(content.get("answers", {}).get(key, ""))
        ids = self._encoder.encode(answer, special_tokens=False)
        if len(ids) != 1:
            raise InvalidArgument(f"answer {answer!r} of template {reference} is {len(ids)} tokens, not one", field=f"rules.answers.{key}")
        return ids[0]


def _rule_set(reference: str, content: dict[str, Any]) -> RuleSet:
    rules = {}
    for entry in content["rules"]:
        rule = Rule(check_name(str(entry["id"]), "rules.id"), str(entry["text"]), str(entry.get("category", "")))
        if rule.rule_id in rules:
            raise InvalidArgument(f"rule {rule.rule_id!r} stands twice in {reference}", field="rules.id")
        rules[rule.rule_id] = rule
    return RuleSet(reference, rules)
