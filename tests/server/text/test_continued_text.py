"""Text as a continuation, with every family of tokenizers: prompt and text together are the whole text, or the text is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.rewards.rules import RuleBook
from polyhead.server.rpc.messages.prompts import completion_ids, prompt_ids
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.text import tokenizer as tokenizer_module
from polyhead.server.text.transcripts import TranscriptBook
from polyhead.v1.scoring_pb2 import ScoreItem
from polyhead.v1.types_pb2 import Chat, ChatMessage, Prompt, TokenIds
from tests.server.text.tiny_tokenizers.families import EOS, FAMILIES, SPECIAL, load

NOTHING: Any = None
WORDS = ("wordpiece", "word-level")
LETTERS = [name for name in FAMILIES if name not in WORDS]
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
BOUNDARIES = [("f(", "x)"), ("f(x", ")"), ("Paris is", "  a"), ("a", "\nx"), ("Pa", "ris is"), ("a.", ". a"), ("\n", "\n\na")]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tokenizer_module.Tokenizer]:
    return {name: load(tmp_path_factory.mktemp("tokenizer"), make(), chat=CHAT) for name, make in FAMILIES.items()}


def door_of(tokenizer: tokenizer_module.Tokenizer, vocab_size: int = 1 << 20) -> RequestContext:
    return RequestContext(tokenizer, NOTHING, NOTHING, NOTHING, vocab_size, 1024, frozenset(), NOTHING, NOTHING)


@pytest.mark.parametrize("name", LETTERS)
def test_prompt_and_completion_are_the_whole_text(tokenizers: dict[str, tokenizer_module.Tokenizer], name: str) -> None:
    """`score([("f(", "x)")])` scored `f( x)` with SentencePiece."""
    tokenizer = tokenizers[name]
    for before, after in BOUNDARIES:
        item = ScoreItem(prompt=Prompt(text=before), text=after)
        prompt = prompt_ids(item.prompt, door_of(tokenizer), "prompt")
        completion = completion_ids(item, prompt, door_of(tokenizer), "items[0]")
        assert tokenizer.decode([*prompt, *completion]) == tokenizer.decode(prompt) + after, (before, after)
        assert tokenizer.decode(prompt) == (" " + before if "prefix space" in name else before)  # as GPT-2's option says
        assert tokenizer.decode_after(prompt)(completion) == after, (before, after)


@pytest.mark.parametrize("name", LETTERS)
@pytest.mark.parametrize("reply", [" Paris is", "Paris", "x)", "  a", "\n\nf(x"])
def test_a_reply_keeps_its_first_space(tokenizers: dict[str, tokenizer_module.Tokenizer], name: str, reply: str) -> None:
    """It came without, so a stop string that begins with a space never matched at its beginning."""
    tokenizer = tokenizers[name]
    prompt = prompt_ids(Prompt(text="f("), door_of(tokenizer), "prompt")
    sampled = tokenizer.encode_after(prompt, reply, "text")
    stream = tokenizer.stream((), False, prompt)
    pieces = [*map(stream.push, sampled), stream.finish()]
    assert "".join(pieces) == stream.text == reply
    stopped = tokenizer.stream((reply,), False, prompt)
    assert "".join([*map(stopped.push, sampled), stopped.finish()]) == ""
    assert stopped.matched_stop == reply


@pytest.mark.parametrize("name", FAMILIES)
def test_special_tokens_within_a_reply_cost_no_space(tokenizers: dict[str, tokenizer_module.Tokenizer], name: str) -> None:
    """What a special token leaves behind is no beginning of a text: the next word's space was taken off there."""
    tokenizer = tokenizers[name]
    prompt, [eos] = tokenizer.encode("a"), tokenizer.encode(EOS, special_tokens=False)
    first, then = (tokenizer.encode_after(prompt, each, "text") for each in (" x", " is"))
    stream = tokenizer.stream((), False, prompt)
    for token in [*first, *[eos] * 40, *then]:
        stream.push(token)
    stream.finish()
    assert stream.text == " x is"


@pytest.mark.parametrize("name", ["sentencepiece, legacy", "sentencepiece, first", "sentencepiece, always", "unigram"])
def test_behind_a_bos_alone_a_text_begins(tokenizers: dict[str, tokenizer_module.Tokenizer], name: str) -> None:
    """Nothing stands before it, so its first word is written and read as that of any text."""
    tokenizer = tokenizers[name]
    [bos], whole = tokenizer.encode("", special_tokens=True)[:1], tokenizer.encode("Paris is")
    completion = tokenizer.encode_after([bos], "Paris is", "text")
    assert [bos, *completion] == whole
    stream = tokenizer.stream((), False, [bos])
    assert "".join([*map(stream.push, completion), stream.finish()]) == "Paris is" == tokenizer.decode_after([bos])(completion)


@pytest.mark.parametrize("name", LETTERS)
def test_a_prefix_stands_as_it_was_given(tokenizers: dict[str, tokenizer_module.Tokenizer], name: str) -> None:
    tokenizer = tokenizers[name]
    chat = Prompt(chat=Chat(messages=[ChatMessage(role="user", content="a x")]))
    before = prompt_ids(chat, door_of(tokenizer), "prompt")
    for prefix in ("Paris", " Paris"):
        chat.assistant_prefix = prefix
        whole = prompt_ids(chat, door_of(tokenizer), "prompt")
        assert whole[: len(before)] == before
        assert tokenizer.decode_after(before)(whole[len(before) :]) == prefix


@pytest.mark.parametrize("name", WORDS)
def test_a_tokenizer_of_words_refuses_what_it_cannot_continue(tokenizers: dict[str, tokenizer_module.Tokenizer], name: str) -> None:
    """`x)` would be scored as ` x )`. Words with their spaces it can write; ids go as they are."""
    tokenizer, kind = tokenizers[name], {"wordpiece": "WordPiece", "word-level": "WordLevel"}[name]
    prompt = tokenizer.encode("f (")
    for completion in ("x)", "x", " x)", " paris  is", "\n x"):
        with pytest.raises(InvalidArgument, match=rf"tokenizer \({kind}\) cannot write this text behind another one") as caught:
            completion_ids(ScoreItem(text=completion), prompt, door_of(tokenizer), "items[3]")
        assert caught.value.field == "items[3].text"
    with pytest.raises(InvalidArgument) as caught:
        prompt_ids(Prompt(text="f (", assistant_prefix="x)"), door_of(tokenizer), "prompt")
    assert caught.value.field == "prompt.assistant_prefix"
    spaced = completion_ids(ScoreItem(text=" x )"), prompt, door_of(tokenizer), "item")
    assert tokenizer.decode([*prompt, *spaced]) == "f ( x )"
    assert completion_ids(ScoreItem(token_ids=TokenIds(ids=spaced)), prompt, door_of(tokenizer), "item") == spaced


def test_unknown_text_is_not_scored_as_another(tokenizers: dict[str, tokenizer_module.Tokenizer]) -> None:
    with pytest.raises(InvalidArgument, match="'日' would become"):
        tokenizers["unigram"].encode_after(tokenizers["unigram"].encode("a"), "日", "text")


@pytest.mark.parametrize("name", FAMILIES)
def test_eos_truncation_and_padding_of_a_training_touch_no_text(
    tokenizers: dict[str, tokenizer_module.Tokenizer], tmp_path: Path, name: str
) -> None:
    """Left in tokenizer.json, they cut a text to 4 tokens or filled it up; an appended EOS would end what is to go on."""
    plain, left = tokenizers[name], load(tmp_path, FAMILIES[name](), eos=True, cut_to=4)
    for each in ("a", "Paris is a x a x a x"):
        assert left.encode(each, special_tokens=False) == plain.encode(each, special_tokens=False)
        assert left.encode_after(plain.encode("a"), " " + each, "text") == plain.encode_after(plain.encode("a"), " " + each, "text")


@pytest.mark.parametrize("name", ["sentencepiece, legacy", "sentencepiece, first", "sentencepiece, always", "sentencepiece, never"])
def test_rules_and_openings_stand_behind_the_dialogue_as_they_are_written(
    tokenizers: dict[str, tokenizer_module.Tokenizer], name: str
) -> None:
    """The shipped template did not fit (" Yes" is two tokens at the beginning of a text), and the shipped format was set aside."""
    tokenizer = tokenizers[name]
    book, dialogue = RuleBook(tokenizer), tokenizer.encode("Paris")
    rules = book.find_set("example-rules", "rule_set").rules
    for [(rule_id, suffix)] in ([question] for question in book.suffixes(rules.values())["example-rule-prompt@1"]):
        asked = tokenizer.decode([*dialogue, *suffix])
        assert asked.startswith("Paris\n\n===\nRead the conversation above.")
        assert asked.endswith(f"Rule: {rules[rule_id].text}\nAnswer:")
    template = book.find_template("example-rule-prompt", "template")
    answers = (template.violated_token_id, template.followed_token_id)
    assert [tokenizer.decode([*dialogue, token]) for token in answers] == ["Paris Yes", "Paris No"]
    assert "\n\nSparrow:" in TranscriptBook(tokenizer).find("sparrow", "format").openings


@pytest.mark.parametrize("name", ["byte-level", "sentencepiece, never"])
def test_tokenizers_that_treat_text_alike_everywhere_are_asked_as_they_are(
    tokenizers: dict[str, tokenizer_module.Tokenizer], name: str
) -> None:
    """Nothing is put before a text, nothing is decoded twice, nothing checked."""
    tokenizer = tokenizers[name]
    assert tokenizer.continuation.is_plain
    assert tokenizer.decode_after([len(SPECIAL)]) == tokenizer.continuation.decode
    for each in ("x)", " Paris", "\ufffd日", "a</s>b"):
        assert tokenizer.encode_after([len(SPECIAL)], each, "text") == tokenizer.encode(each, special_tokens=False)
    assert cast(Any, tokenizer.stream((), False, [len(SPECIAL)]))._ids == []
