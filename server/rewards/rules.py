"""Rule sets and rule templates: versioned files, and the ids that ask a rule head about one rule.

One tokenisation path, for the server and for trainers' tools alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.server.rewards.configurations import (
    Configuration,
    ConfigurationFile,
    ConfigurationKind,
    add_once,
    find_newest,
    read_file,
    without,
)
from polyhead.server.rewards.rule_templates import FIELD, Encoder, RuleTemplate, TemplateText, Unfit, template_text
from polyhead.server.validation import FileModel, Name, own_error

SHIPPED = Path(__file__).parent / "rule_files"
DEFAULT_SET = "example-rules"
DEFAULT_TEMPLATE = "example-rule-prompt@2"
SHIPPED_TEMPLATES = ("example-rule-prompt@1", DEFAULT_TEMPLATE, "example-rule-prompt-zh@1")  # not configured by the operator: no warning
MAX_RULE_CHARACTERS = 2000

logger = logging.getLogger(__name__)


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


class RuleBook:
    """All rule sets and templates that the server knows.

    A template that the tokenizer cannot ask is set aside: said in the log and in listings, refused where a request needs it, and never a
    reason not to start.
    """

    def __init__(self, encoder: Encoder, files: Iterable[Path] = (), vocab_size: int | None = None) -> None:
        self._encoder = encoder
        self._vocab_size = vocab_size
        self.sets: dict[str, RuleSet] = {}
        self.templates: dict[str, RuleTemplate] = {}  # those that fit
        self._texts: dict[str, TemplateText] = {}  # all of them
        self._unfit: dict[str, str] = {}  # why a template was set aside
        for path in [*sorted(SHIPPED.glob("*.yaml")), *files]:
            file = read_file(path, FIELD)
            if "rules" in file.values:
                add_once(self.sets, file.reference, _rule_set(file), FIELD)
            else:
                add_once(self._texts, file.reference, template_text(file), FIELD)
        self._fit_templates()
        self.answers = {reference: each.answers for reference, each in self.templates.items()}  # (broken, followed) by template

    @property
    def default_template(self) -> str:
        """What new rule heads ask with: the English question, or else one that fits; "example-rule-prompt@2" if none does."""
        return next((reference for reference in (DEFAULT_TEMPLATE, *self.templates) if reference in self.templates), DEFAULT_TEMPLATE)

    def find_set(self, reference: str, field: str) -> RuleSet:
        """A set by "name@version", or the newest version by "name"."""
        return find_newest(self.sets, reference, "rule set", field)

    def find_template(self, reference: str, field: str) -> RuleTemplate:
        """A template by "name@version", or the newest version by "name". FailedPrecondition if it was set aside."""
        found = find_newest(self._texts, reference, "rule template", field).file.reference
        if why := self._unfit.get(found):
            raise FailedPrecondition(f"{found} does not fit this model's tokenizer: {why}", field=field)
        return self.templates[found]

    def check_head(self, head: str, template: str, field: str) -> None:
        """FailedPrecondition unless a rule head's template can be asked."""
        if why := self._unfit.get(template):
            raise FailedPrecondition(f"{head} asks with {template}, which does not fit this model's tokenizer: {why}", field=field)
        if template not in self.templates:
            raise FailedPrecondition(f"{head} uses a template that the server does not have: {template!r}", field=field)

    def questions(self, template: RuleTemplate, rules: Iterable[Rule], field: str = FIELD) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(rule id, ids after the dialogue) for each rule. InvalidArgument, below `field`, for one that the tokenizer cannot write."""
        return tuple((rule.rule_id, template.suffix(self._encoder, rule.text, f"{field}[{rule.rule_id}].text")) for rule in rules)

    def suffixes(self, rules: Iterable[Rule], field: str = FIELD) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
        """The questions by template."""
        rules = list(rules)
        return {reference: self.questions(template, rules, field) for reference, template in self.templates.items()}

    def configurations(self) -> Iterator[Configuration]:
        """What the server lists of these files."""
        for rule_set in self.sets.values():
            rules = tuple((rule.rule_id, rule.text) for rule in rule_set.rules.values())
            yield rule_set.file.listed(ConfigurationKind.RULE_SET, rules)
        for reference, text in self._texts.items():
            yield text.file.listed(ConfigurationKind.RULE_TEMPLATE, set_aside=self._unfit.get(reference, ""))

    def add(self, file: ConfigurationFile, keep: Callable[[], None] | None) -> None:
        """See Book. Each mapping is replaced by a new one: others may be reading the old one."""
        if "rules" in file.values:
            rule_set = _rule_set(file)
            if keep is not None:
                keep()
            self.sets = {**self.sets, file.reference: rule_set}
        else:
            self._add_template(template_text(file), keep)

    def remove(self, kind: ConfigurationKind, reference: str) -> None:
        """See Book."""
        if kind is ConfigurationKind.RULE_SET:
            self.sets = without(self.sets, reference)
        else:
            self._texts = without(self._texts, reference)
            self.templates = without(self.templates, reference)
            self._unfit = without(self._unfit, reference)
            self.answers.pop(reference, None)

    def _add_template(self, text: TemplateText, keep: Callable[[], None] | None) -> None:
        reference = text.file.reference
        try:
            template = text.fitted(self._encoder, self._vocab_size)
        except (Unfit, InvalidArgument) as error:
            if keep is not None:
                raise FailedPrecondition(f"{reference} does not fit this model's tokenizer: {error}", field=text.file.field) from None
            logger.warning("%s is set aside, it does not fit this model's tokenizer: %s", reference, error)
            self._unfit = {**self._unfit, reference: str(error)}
        else:
            if keep is not None:
                keep()
            self.answers[reference] = template.answers
            self.templates = {**self.templates, reference: template}
        self._texts = {**self._texts, reference: text}

    def _fit_templates(self) -> None:
        for reference, text in self._texts.items():
            try:
                self.templates[reference] = text.fitted(self._encoder, self._vocab_size)
            except (Unfit, InvalidArgument) as error:
                self._unfit[reference] = str(error)
        is_served = DEFAULT_TEMPLATE in self.templates
        for reference, why in self._unfit.items():
            level = logging.INFO if is_served and reference in SHIPPED_TEMPLATES else logging.WARNING
            logger.log(level, "%s is set aside, it does not fit this model's tokenizer: %s", reference, why)


def _rule_set(file: ConfigurationFile) -> RuleSet:
    rules: dict[str, Rule] = {}
    for index, rule in enumerate(file.checked(_RuleSetFile).rules):
        if rule.id in rules:
            raise file.error(f"rules[{index}].id", f"is the id of another rule, too: {rule.id!r}")
        rules[rule.id] = Rule(rule.id, rule.text, rule.category)
    return RuleSet(file.reference, rules, file)


def _is_not_blank(text: str) -> str:
    if not text.strip():
        raise own_error("must not be blank")
    return text


class _RuleOfFile(FileModel):
    id: Name
    text: Annotated[str, Field(max_length=MAX_RULE_CHARACTERS), AfterValidator(_is_not_blank)]
    category: str = ""


class _RuleSetFile(FileModel):
    rules: Annotated[list[_RuleOfFile], Field(min_length=1)]
