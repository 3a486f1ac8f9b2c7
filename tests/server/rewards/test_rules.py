"""Rule files: what is shipped loads, versions are found, and what is wrong is said before anything is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead.heads.format.errors import InvalidArgument, NotFound
from polyhead.server.rewards.rules import DEFAULT_TEMPLATE, Rule, RuleBook


class Words:
    """A tokenizer whose tokens are space-led words; "maybe so" is two. Knows every word, unless it is told which."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode_behind_text(self, text: str, field: str = "", is_content: bool = False) -> list[int]:
        return [self.ids.setdefault(word, len(self.ids)) for word in text.split()]

    def single_token(self, text: str) -> int | None:
        ids = self.encode_behind_text(text)
        return ids[0] if len(ids) == 1 else None


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
    with pytest.raises(NotFound):
        book.find_template(reference, "template")
    with pytest.raises(NotFound):  # a set is no template
        book.find_template("example-rules", "template")


def test_questions_of_one_template_are_those_of_all(book: RuleBook) -> None:
    rules = list(book.find_set("example-rules", "rule_set").rules.values())
    assert book.questions(book.find_template("example-rule-prompt", "template"), rules) == book.suffixes(rules)[DEFAULT_TEMPLATE]


def test_the_newest_version_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "more.yaml"
    file.write_text("id: example-rules\nversion: 2\nrules:\n  - {id: be-kind, text: Be kind.}\n")
    book = RuleBook(Words(), [file])
    assert book.find_set("example-rules", "rule_set").reference == "example-rules@2"
    assert len(book.find_set("example-rules@1", "rule_set").rules) == 23
    assert sorted(book.sets) == ["example-rules@1", "example-rules@2"]
    file.write_text(file.read_text().replace("version: 2", "version: 1"))
    with pytest.raises(InvalidArgument, match="example-rules@1 stands in two files"):
        RuleBook(Words(), [file])


TEMPLATE = "id: t\nversion: 1\ntemplate: '{dialogue} {rule} ok'\nanswers: {violated: 'yes', followed: 'no'}\n"


def test_a_right_template_is_taken(tmp_path: Path) -> None:
    """What the wrong ones below differ from."""
    file = tmp_path / "right.yaml"
    file.write_text(TEMPLATE)
    assert RuleBook(Words(), [file]).find_template("t", "template").reference == "t@1"


@pytest.mark.parametrize(
    ("content", "field"),
    [
        (TEMPLATE + "more: x\n", "rules.more"),
        (TEMPLATE.replace("followed: 'no'", "followed: 'no', unsure: x"), "rules.answers.unsure"),
        (TEMPLATE.replace("{violated: 'yes', followed: 'no'}", "x"), "rules.answers"),
        (TEMPLATE.replace("followed: 'no'", "followed: no"), "rules.answers.followed"),  # YAML's no is False
        (TEMPLATE.replace(", followed: 'no'", ""), "rules.answers.followed"),
        (TEMPLATE.replace("'no'", "'yes'"), "rules.answers"),
        (TEMPLATE.replace("'no'", "['no', 'yes']"), "rules.answers"),  # a spelling of both answers
        (TEMPLATE.replace("'no'", "[]"), "rules.answers.followed"),
        (TEMPLATE.replace("'no'", "['no', no]"), "rules.answers.followed[1]"),
        (TEMPLATE.replace("'no'", "{no: 1}"), "rules.answers.followed"),
        (TEMPLATE.replace(" ok", " ok {rule}"), "rules.template"),
        ("id: x\nversion: 1\nrules: []\n", "rules.rules"),
        ("id: x\nversion: 1\nrules: {a: A}\n", "rules.rules"),
        ("id: x\nversion: 1\nrules:\n  - {id: a, text: ' '}\n", "rules.rules[0].text"),
        ("id: x\nversion: 1\nrules:\n  - {id: a}\n", "rules.rules[0].text"),
        ("id: x\nversion: 1\nrules:\n  - {id: a, text: " + "x" * 2001 + "}\n", "rules.rules[0].text"),
        ("id: x\nversion: 1\nrules:\n  - {id: a, text: A., weight: 2}\n", "rules.rules[0].weight"),
        ("id: x\nversion: 1\nrules:\n  - {id: 1, text: A.}\n", "rules.rules[0].id"),
        ("id: x\nversion: 1\nname: y\nrules:\n  - {id: a, text: A.}\n", "rules.name"),
        ("id: x\nversion: 1\nrules:\n  - {id: a, text: A.}\n  - {id: a, text: B.}\n", "rules.rules[1].id"),
        ("id: ../x\nversion: 1\nrules: []\n", "rules.id"),
        ("just text", "rules"),
        ("id: t\nversion: 1\ntemplate: 'no rule {dialogue}'\nanswers: {violated: 'Yes', followed: 'No'}\n", "rules.template"),
        ("id: t\nversion: 1\ntemplate: 'x {dialogue} {rule}'\nanswers: {violated: 'Yes', followed: 'No'}\n", "rules.template"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: str, field: str) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(content)
    with pytest.raises(InvalidArgument, match=r"^wrong\.yaml: ") as caught:
        RuleBook(Words(), [file])
    assert caught.value.field == field
