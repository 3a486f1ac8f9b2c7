"""Rule files: what is shipped loads, versions are found, and what is wrong is said before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead.heads.errors import InvalidArgument, NotFound
from polyhead.server.rules import DEFAULT_TEMPLATE, Rule, RuleBook


class Words:
    """A tokenizer whose tokens are space-led words; "maybe so" is two."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str, special_tokens: bool = True) -> list[int]:
        assert not special_tokens, "a template must not bring a BOS into the middle of a text"
        return [self.ids.setdefault(word, len(self.ids)) for word in text.split()]


@pytest.fixture
def book() -> RuleBook:
    return RuleBook(Words())


def test_the_shipped_set_has_23_rules_and_a_template(book: RuleBook) -> None:
    assert len(book.find_set("example-rules", "rule_set").rules) == 23
    assert book.find_set("example-rules@1", "rule_set").reference == "example-rules@1"
    assert DEFAULT_TEMPLATE in book.templates


def test_all_fixed_text_before_the_rule_is_shared(book: RuleBook) -> None:
    template = book.templates[DEFAULT_TEMPLATE]
    [(_, first), (_, second)] = book.suffixes([Rule("a", "be kind"), Rule("b", "be brief and clear")])[DEFAULT_TEMPLATE]
    assert first[: len(template.before)] == second[: len(template.before)] == template.before
    assert first[-len(template.after) :] == second[-len(template.after) :] == template.after
    assert first != second


@pytest.mark.parametrize("reference", ["example-rules@2", "nothing"])
def test_unknown_sets_are_not_found(book: RuleBook, reference: str) -> None:
    with pytest.raises(NotFound):
        book.find_set(reference, "rule_set")


def test_the_newest_version_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("id: example-rules\nversion: 2\nrules:\n  - {id: be-kind, text: Be kind.}\n")
    book = RuleBook(Words(), [file])
    assert book.find_set("example-rules", "rule_set").reference == "example-rules@2"
    assert len(book.find_set("example-rules@1", "rule_set").rules) == 23


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ("id: x\nversion: 1\nrules:\n  - {id: a, text: A.}\n  - {id: a, text: B.}\n", "rules.id"),
        ("id: ../x\nversion: 1\nrules: []\n", "rules.id"),
        ("just text", "rules"),
        ("id: t\nversion: 1\ntemplate: 'no rule {dialogue}'\nanswers: {violated: Yes, followed: No}\n", "rules.template"),
        ("id: t\nversion: 1\ntemplate: 'x {dialogue} {rule}'\nanswers: {violated: Yes, followed: No}\n", "rules.template"),
        ("id: t\nversion: 1\ntemplate: '{dialogue} {rule}'\nanswers: {violated: maybe so, followed: 'no'}\n", "rules.answers.violated"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, field: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(InvalidArgument) as caught:
        RuleBook(Words(), [file])
    assert caught.value.field == field
