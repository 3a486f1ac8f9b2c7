"""Recipe files: what is shipped loads, versions are found, and a wrong file is refused by file and field."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyhead.heads.format.errors import InvalidArgument, NotFound
from polyhead.server.rewards.formulas import Aggregate, Estimator
from polyhead.server.rewards.recipes import SHIPPED, Form, Part, Read, RecipeBook, read_recipe

PREFERENCE = "  p: {read: preference, head: preference, coefficient: 1.0}\n"
SUM = "id: mine\nversion: 1\nform: sum\nparts:\n"
RERANK = "id: mine\nversion: 1\nform: rerank\nparts:\n  p: {read: preference, head: preference}\n  r: {read: rules, head: rule}\n"
KL = "kl: {reference: reference, policy: policy, coefficient: 0.1, estimator: k3}\n"


def write(folder: Path, text: str) -> Path:
    file = folder / "mine.yaml"
    file.write_text(text)
    return file


def test_the_shipped_recipes() -> None:
    book = RecipeBook()
    assert set(book.recipes) == {"sparrow@1", "rerank@1", "preference@1", "kl@1", "rlhf@1", "sparrow-kl@1"}
    sparrow = book.find("sparrow", "recipe")
    assert sparrow.form is Form.SUM
    assert [part.read.value for part in sparrow.parts] == ["preference", "rules", "tokens", "newlines", "invalid"]
    assert set(sparrow.constants) == {"preference", "rules", "tokens", "newlines", "invalid"}
    assert all(sparrow.constants[name] < 0 for name in ("tokens", "newlines", "invalid"))
    assert book.find("rerank@1", "recipe").averages_samples
    assert set(book.find("rerank", "recipe").constants) == {"alpha"}
    kl = book.find("kl", "recipe")
    assert kl.kl is not None
    assert (kl.kl.reference, kl.kl.policy, kl.kl.estimator) == ("reference", "policy", Estimator.K1)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_constants_that_nobody_published_are_called_ours(path: Path) -> None:
    """Every file with a number that is not a plain 1 says so before its first key."""
    recipe = read_recipe(path)
    comment = path.read_text().split("\nid:")[0]
    assert ("OURS" in comment) == (set(recipe.constants.values()) != {1.0} or recipe.form is Form.RERANK)


def test_every_kind_of_part_and_constant(tmp_path: Path) -> None:
    text = SUM + PREFERENCE + (
        "  other: {read: preference, head: pm-harmless, coefficient: 2}\n"
        "  rules: {read: rules, head: rule, aggregate: weights, weights: {no-insults: 2.0, stay-on-topic: 0.5}, coefficient: 3.0}\n"
        "  likely: {read: mean_logprob, head: reference, coefficient: 0.1}\n"
    ) + KL  # fmt: skip
    recipe = read_recipe(write(tmp_path, text))
    assert recipe.parts == (
        Part("p", Read.PREFERENCE, "preference"),
        Part("other", Read.PREFERENCE, "pm-harmless"),
        Part("rules", Read.RULES, "rule", Aggregate.WEIGHTS, ("no-insults", "stay-on-topic")),
        Part("likely", Read.MEAN_LOGPROB, "reference"),
    )
    assert recipe.constants == {
        "p": 1.0, "other": 2.0, "rules": 3.0, "rules.no-insults": 2.0, "rules.stay-on-topic": 0.5, "likely": 0.1, "kl_coefficient": 0.1
    }  # fmt: skip
    assert (recipe.averages_samples, recipe.file.content) == (False, text)


def test_a_stored_average_is_a_constant(tmp_path: Path) -> None:
    recipe = read_recipe(write(tmp_path, RERANK + "alpha: 0.5\naverage: 0.25\n"))
    assert (recipe.averages_samples, recipe.constants) == (False, {"alpha": 0.5, "average": 0.25})


def test_the_newest_version_is_the_default(tmp_path: Path) -> None:
    book = RecipeBook([write(tmp_path, "id: sparrow\nversion: 12\nform: sum\nparts:\n" + PREFERENCE)])
    assert book.find("sparrow", "recipe").reference == "sparrow@12"
    assert book.find("sparrow@1", "recipe").reference == "sparrow@1"
    for unknown in ("sparrow@2", "nothing"):
        with pytest.raises(NotFound):
            book.find(unknown, "recipe")


def test_a_version_never_changes(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"sparrow@1 stands in two files"):
        RecipeBook([write(tmp_path, "id: sparrow\nversion: 1\nform: sum\nparts:\n" + PREFERENCE)])


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("just text", "recipes"),
        ("a: [", "recipes"),
        ("version: 1\nform: sum\nparts:\n" + PREFERENCE, "recipes.id"),
        ("id: ../x\nversion: 1\nform: sum\nparts:\n" + PREFERENCE, "recipes.id"),
        ("id: mine\nversion: 1.5\nform: sum\nparts:\n" + PREFERENCE, "recipes.version"),
        ("id: mine\nversion: 0\nform: sum\nparts:\n" + PREFERENCE, "recipes.version"),
        ("id: mine\nversion: true\nform: sum\nparts:\n" + PREFERENCE, "recipes.version"),
        ("id: mine\nversion: 1\nform: product\nparts:\n" + PREFERENCE, "recipes.form"),
        ("id: mine\nversion: 1\nform: sum\nparts: {}\n", "recipes.parts"),
        (SUM + PREFERENCE + "colour: red\n", "recipes.colour"),
        (SUM + PREFERENCE + "alpha: 1.0\n", "recipes.alpha"),
        (SUM + PREFERENCE + PREFERENCE, "recipes"),
        (SUM + "  p: {read: humour, coefficient: 1.0}\n", "recipes.parts.p.read"),
        (SUM + "  p: {read: [tokens], coefficient: 1.0}\n", "recipes.parts.p.read"),
        (SUM + "  p: {read: tokens}\n", "recipes.parts.p.coefficient"),
        (SUM + "  p: {read: tokens, coefficient: 1e-3}\n", "recipes.parts.p.coefficient"),  # YAML 1.1 reads text
        (SUM + "  p: {read: tokens, coefficient: .nan}\n", "recipes.parts.p.coefficient"),
        (SUM + "  p: {read: tokens, coefficient: .inf}\n", "recipes.parts.p.coefficient"),
        (SUM + "  p: {read: tokens, coefficient: 1.0e+10}\n", "recipes.parts.p.coefficient"),
        (SUM + "  p: {read: tokens, coefficient: 1" + "0" * 400 + "}\n", "recipes.parts.p.coefficient"),
        (SUM + "  p: {read: tokens, coefficient: 1" + "0" * 5000 + "}\n", "recipes"),
        (SUM + "  p: {read: tokens, coefficient: 2026-99-99}\n", "recipes"),
        (SUM + "  ? [a]\n  : {read: tokens, coefficient: 1.0}\n", "recipes"),
        ("id: mine\nversion: 9999999999\nform: sum\nparts:\n" + PREFERENCE, "recipes.version"),
        (SUM + "  p: {read: tokens, coefficient: yes}\n", "recipes.parts.p.coefficient"),
        (SUM + "  p: {read: tokens, head: policy, coefficient: 1.0}\n", "recipes.parts.p.head"),
        (SUM + "  p: {read: preference, coefficient: 1.0}\n", "recipes.parts.p.head"),
        (SUM + "  p: {read: preference, head: preference@3, coefficient: 1.0}\n", "recipes.parts.p.head"),
        (SUM + "  p: {read: rules, head: rule, coefficient: 1.0}\n", "recipes.parts.p.aggregate"),
        (SUM + "  p: {read: rules, head: rule, aggregate: weights, coefficient: 1.0}\n", "recipes.parts.p.weights"),
        (SUM + "  p: {read: rules, head: rule, aggregate: weights, weights: {}, coefficient: 1.0}\n", "recipes.parts.p.weights"),
        (SUM + "  p: {read: rules, head: rule, aggregate: weights, weights: {a: b}, coefficient: 1.0}\n", "recipes.parts.p.weights.a"),
        (SUM + "  p: {read: rules, head: rule, aggregate: mean, weights: {a: 1}, coefficient: 1.0}\n", "recipes.parts.p.weights"),
        (SUM + "  p: tokens\n", "recipes.parts.p"),
        (SUM + "  kl_coefficient: {read: tokens, coefficient: 1.0}\n", "recipes.parts.kl_coefficient"),
        (SUM + "  p.q: {read: tokens, coefficient: 1.0}\n", "recipes.parts.p.q"),
        (SUM + PREFERENCE + "kl: {reference: reference, policy: policy, coefficient: 0.1, estimator: k4}\n", "recipes.kl.estimator"),
        (SUM + PREFERENCE + "kl: {reference: reference, coefficient: 0.1, estimator: k1}\n", "recipes.kl.policy"),
        (SUM + PREFERENCE + "kl: {reference: r, policy: p, coefficient: 0.1, estimator: k1, target: 6}\n", "recipes.kl.target"),
        (RERANK + "alpha: 1.0\n", "recipes.average"),
        (RERANK + "alpha: 1.0\naverage: all\n", "recipes.average"),
        (RERANK + "alpha: -1.0\naverage: samples\n", "recipes.alpha"),
        (RERANK + "  n: {read: newlines}\nalpha: 1.0\naverage: samples\n", "recipes.parts"),
        (RERANK.replace("rule}", "rule, coefficient: 1.0}") + "alpha: 1.0\naverage: samples\n", "recipes.parts.r.coefficient"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, field: str) -> None:
    with pytest.raises(InvalidArgument, match=r"mine\.yaml") as caught:
        RecipeBook([write(tmp_path, text)])
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("{read: [tokens], coefficient: 1}",
         "p.read must be 'preference', 'rules', 'mean_logprob', 'tokens', 'newlines' or 'invalid': ['tokens']"),
        ("{read: tokens, coefficient: 1e-3}", "p.coefficient must be a number such as 0.001: '1e-3'"),
        ("{read: tokens, coefficent: 1}", "p.coefficent is unknown\nhint: known are read, head, coefficient, aggregate, weights"),
        ("{read: tokens, head: rule, coefficient: 1}", "p.head is not taken by a part that reads tokens in the form sum"),
        ("{read: tokens}", "p.coefficient is missing: a part that reads tokens in the form sum takes it"),
        ("{read: rules, head: rule, aggregate: weights, coefficient: 1, weights: {}}", "p.weights must have at least 1 entries: 0"),
        ("{read: preference, head: Rule, coefficient: 1}",
         "p.head is not a valid name (lower case letters, digits, '.', '_', '-', at most 64, no '..'): 'Rule'"),
    ],
)  # fmt: skip
def test_errors_name_the_file_the_key_and_the_value(tmp_path: Path, part: str, said: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        read_recipe(write(tmp_path, f"{SUM}  p: {part}\n"))
    assert caught.value.message == f"mine.yaml: parts.{said}"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"nothing\.yaml"):
        RecipeBook([tmp_path / "nothing.yaml"])
