"""Rule templates and tokenizers: one that does not fit is set aside with its reason, and the server starts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from tokenizers import normalizers

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.format.kinds import HeadKind, OutputKind
from polyhead.heads.format.manifest import HeadManifest
from polyhead.server.engine.work.live import LiveHead, ServedHead
from polyhead.server.rewards.configurations import ConfigurationKind
from polyhead.server.rewards.recipes import RecipeBook
from polyhead.server.rewards.rules import DEFAULT_TEMPLATE, RuleBook
from polyhead.server.rpc.messages import configurations, request_parts, scoring_requests
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.text.tokenizer import Tokenizer
from polyhead.server.versions.manifests import ManifestPatch, RuleDefaults, ServedTrunk
from polyhead.v1 import scoring_pb2
from polyhead.v1.types_pb2 import Prompt, RuleSelection, ScoringSpec, TokenIds
from tests.server.text.tiny_tokenizers import chat_tokenizers

NOTHING: Any = None
ENGLISH = ("example-rule-prompt@1", "example-rule-prompt@2")
CHINESE = "example-rule-prompt-zh@1"


def book(tokenizer: Any, *files: Path, vocab_size: int | None = None) -> RuleBook:
    return RuleBook(Tokenizer(tokenizer, ""), files, vocab_size)


def set_aside(found: RuleBook) -> dict[str, str]:
    listed = {each.reference: each.set_aside for each in found.configurations() if each.kind is ConfigurationKind.RULE_TEMPLATE}
    assert set(listed) >= {*ENGLISH, CHINESE}  # what is set aside is listed, too
    return {reference: why for reference, why in listed.items() if why}


def house(tmp_path: Path, answers: str, template: str = "{dialogue} {rule} ok") -> Path:
    path = tmp_path / "house.yaml"
    path.write_text(f"id: house\nversion: 1\ntemplate: '{template}'\nanswers: {answers}\n", encoding="utf-8")
    return path


def test_a_byte_level_tokenizer_takes_both_english_templates(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "polyhead"):
        found = book(chat_tokenizers.byte_level())
    assert set(set_aside(found)) == {CHINESE}
    assert found.default_template == DEFAULT_TEMPLATE
    [record] = caplog.records
    assert (record.levelname, CHINESE in record.getMessage()) == ("INFO", True)  # nobody asked for it


def test_a_sentencepiece_tokenizer_takes_both_english_templates() -> None:
    """ " Yes" by itself is two tokens of Mistral's, Mixtral's and Phi 3's: the server ended at start. Behind a text it is one."""
    tokenizer = chat_tokenizers.sentencepiece()
    found = book(tokenizer)
    template = found.find_template("example-rule-prompt", "template")
    assert [template.violated_token_id, template.followed_token_id] == tokenizer.convert_tokens_to_ids(["▁Yes", "▁No"])
    assert set(set_aside(found)) == {CHINESE}


def test_a_word_tokenizer_starts_and_says_what_it_cannot_ask(caplog: pytest.LogCaptureFixture) -> None:
    """Both answers were the unknown token, and the server ended at start."""
    with caplog.at_level(logging.INFO, "polyhead"):
        found = book(chat_tokenizers.word_level())
    assert set(set_aside(found)) == {*ENGLISH, CHINESE}
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    with pytest.raises(FailedPrecondition, match="does not fit this model's tokenizer: no spelling of an answer is one token") as caught:
        found.find_template("example-rule-prompt", "template")
    assert caught.value.field == "template"
    with pytest.raises(FailedPrecondition, match="does not fit"):
        configurations.rule_questions(scoring_pb2.TokenizeRulesRequest(rules=RuleSelection(rule_set="example-rules")), found)


@pytest.mark.parametrize(
    ("answers", "why"),
    [
        ("{violated: yes please, followed: 'x'}", "'yes please'"),
        ("{violated: [yes please, no way], followed: 'x'}", "'yes please', 'no way'"),
        ("{violated: Ā, followed: 'x'}", "'Ā'"),  # two bytes: never a sum
    ],
)
def test_a_template_that_was_asked_for_is_set_aside_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, answers: str, why: str
) -> None:
    found = book(chat_tokenizers.byte_level(), house(tmp_path, answers))
    assert why in set_aside(found)["house@1"]
    assert [record.levelname for record in caplog.records if "house@1" in record.getMessage()] == ["WARNING"]


def test_the_first_spelling_that_is_one_token_is_the_answer(tmp_path: Path) -> None:
    path = house(tmp_path, "{violated: [\"yes\", \"a\", \" Yes\"], followed: [\" No\"]}")
    template = book(chat_tokenizers.byte_level(), path).templates["house@1"]
    spelled = chat_tokenizers.byte_level().convert_tokens_to_ids(["a", "ĠNo"])
    assert [template.violated_token_id, template.followed_token_id] == spelled


def test_two_spellings_of_one_token_are_no_answers(tmp_path: Path) -> None:
    """A tokenizer of small letters has one token for "A" and "a"."""
    tokenizer = chat_tokenizers.byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    found = book(tokenizer, house(tmp_path, "{violated: A, followed: a}"))
    assert "one token for both answers" in set_aside(found)["house@1"]


def test_tokens_that_the_model_does_not_have_are_no_answers(tmp_path: Path) -> None:
    """A token that was added to the tokenizer and not to the model: its embedding does not exist."""
    tokenizer = chat_tokenizers.byte_level()
    before = len(tokenizer)
    tokenizer.add_tokens(["<broken>"])
    path = house(tmp_path, "{violated: <broken>, followed: 'x'}")
    assert "house@1" in set_aside(book(tokenizer, path, vocab_size=before))
    assert "house@1" not in set_aside(book(tokenizer, path, vocab_size=before + 1))
    in_text = house(tmp_path, "{violated: a, followed: 'x'}", "{dialogue} <broken>{rule}")
    assert "outside the model's vocabulary" in set_aside(book(tokenizer, in_text, vocab_size=before))["house@1"]


def test_the_chinese_template_is_the_default_where_only_that_one_fits() -> None:
    with mock.patch.object(chat_tokenizers, "_WORDS", ()):
        tokenizer = chat_tokenizers.byte_level()
    tokenizer.add_tokens(["是", "否"])
    found = book(tokenizer)
    assert found.default_template == CHINESE
    assert set(set_aside(found)) == set(ENGLISH)


# heads


def served(found: RuleBook) -> ServedTrunk:
    answers = {reference: (each.violated_token_id, each.followed_token_id) for reference, each in found.templates.items()}
    spec: Any = type("Spec", (), {"split_layer": 2, "num_layers": 4, "vocab_size": 1000, "output_names": (), "tied": False})
    return ServedTrunk(spec, "0" * 64, "float32", RuleDefaults(found.default_template, answers))


def score(found: RuleBook, manifest: HeadManifest) -> request_parts.Work:
    head = ServedHead("rule", 1, manifest, LiveHead("f" * 64, NOTHING, 0))
    tokenizer = Tokenizer(chat_tokenizers.word_level(), "")
    context = RequestContext(tokenizer, found, NOTHING, RecipeBook(), 1000, 4096, frozenset({2}), lambda *_: head, NOTHING)
    item = scoring_pb2.ScoreItem(prompt=Prompt(token_ids=TokenIds(ids=[3])), token_ids=TokenIds(ids=[4]))
    spec = ScoringSpec(heads=["rule"], rules=RuleSelection(rule_set="example-rules", rule_ids=["no-insults"]))
    return scoring_requests.score_request(scoring_pb2.ScoreRequest(items=[item], score=spec), context, "r")


def test_a_rule_head_is_made_without_a_template_that_fits_and_says_so_when_asked() -> None:
    found = book(chat_tokenizers.word_level())
    manifest = served(found).new_manifest(HeadKind.RULE, OutputKind.OWN)
    manifest.validate()
    assert not manifest.has_answers
    assert HeadManifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(FailedPrecondition, match=f"rule@1 asks with {DEFAULT_TEMPLATE}, which does not fit this model's") as caught:
        score(found, manifest)
    assert caught.value.field == "score.heads"


def test_a_head_without_answers_is_not_asked_once_its_template_fits() -> None:
    """Made when the template did not fit: token -1 would be read as the vocabulary's last."""
    unfit = served(book(chat_tokenizers.word_level())).new_manifest(HeadKind.RULE, OutputKind.OWN)
    with pytest.raises(FailedPrecondition, match="no answer tokens"):
        score(book(chat_tokenizers.byte_level()), unfit)
    filled = served(book(chat_tokenizers.byte_level())).with_rule_defaults(unfit)
    assert score(book(chat_tokenizers.byte_level()), filled).request.rules is not None


def test_a_push_with_another_template_takes_its_answers(tmp_path: Path) -> None:
    """It kept those of the template before: the question was asked in the new words and read off the old answers."""
    found = book(chat_tokenizers.byte_level(), house(tmp_path, "{violated: a, followed: b}"))
    trunk, template = served(found), found.templates["house@1"]
    before = trunk.new_manifest(HeadKind.RULE, OutputKind.OWN)
    for earlier in (before, None):
        pushed = trunk.complete(ManifestPatch(kind=HeadKind.RULE, template="house@1"), earlier, ["lm_head.weight"])
        assert (pushed.violated_token_id, pushed.followed_token_id) == (template.violated_token_id, template.followed_token_id)
    own = trunk.complete(ManifestPatch(kind=HeadKind.RULE, template="house@1", violated_token_id=9, followed_token_id=8), before, [])
    assert (own.violated_token_id, own.followed_token_id) == (9, 8)
    same = trunk.complete(ManifestPatch(kind=HeadKind.RULE), own, [])
    assert (same.violated_token_id, same.followed_token_id) == (9, 8)


def test_half_a_pair_of_answers_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="needs its two answer tokens"):
        HeadManifest(HeadKind.RULE, "0" * 64, 2, 4, OutputKind.OWN, violated_token_id=3, template="t@1").validate()
    with pytest.raises(InvalidArgument, match="needs its two answer tokens"):
        HeadManifest(HeadKind.RULE, "0" * 64, 2, 4, OutputKind.OWN).validate()
