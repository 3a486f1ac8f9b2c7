"""A tokenizer that knows a token more than the model: wherever a text's ids come from, the token is refused by the name of its field."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.rewards.rules import Rule, RuleBook
from polyhead.server.rpc.messages.prompts import completion_ids, prompt_ids, written_ids
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.text.transcripts import TranscriptBook
from polyhead.v1.scoring_pb2 import ScoreItem
from polyhead.v1.types_pb2 import Chat, ChatMessage, Continuation, Prompt
from tests.server.text.tiny_tokenizers.families import FAMILIES, SPECIAL, load

NOTHING: Any = None
FAMILY = "sentencepiece, never"
CHAT = "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
FIRST_TURN = Prompt(chat=Chat(messages=[ChatMessage(role="user", content="a[PAD]b")]))
NEXT_TURN = Continuation(prompt_token_ids=[5], token_ids=[5], messages=FIRST_TURN.chat.messages)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RequestContext:
    """The model's vocabulary ends where [PAD] was added."""
    make = FAMILIES[FAMILY]
    vocab_size = make().get_vocab_size()
    tokenizer = load(tmp_path_factory.mktemp("tokenizer"), make(), vocab_size, added=("[PAD]",), chat=CHAT)
    assert tokenizer.encode("[PAD]", special_tokens=False) == [vocab_size]
    books = RuleBook(tokenizer), TranscriptBook(tokenizer), NOTHING
    return RequestContext(tokenizer, *books, vocab_size, 1024, frozenset(), NOTHING, NOTHING)


def of_prompt(prompt: Prompt) -> Callable[[RequestContext], object]:
    return lambda context: prompt_ids(prompt, context, "prompts[2]")


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (of_prompt(Prompt(text="a[PAD]b")), "prompts[2].text"),
        (of_prompt(FIRST_TURN), "prompts[2].chat"),
        (of_prompt(Prompt(chat=FIRST_TURN.chat, format="sparrow")), "prompts[2].chat"),
        (of_prompt(Prompt(continue_from=NEXT_TURN)), "prompts[2].continue_from"),
        (of_prompt(Prompt(continue_from=NEXT_TURN, format="sparrow")), "prompts[2].continue_from.messages"),
        (of_prompt(Prompt(text="a", assistant_prefix="b[PAD]")), "prompts[2].assistant_prefix"),
        (lambda context: completion_ids(ScoreItem(text="b[PAD]"), [5], context, "items[1]"), "items[1].text"),
        (lambda context: context.rules.suffixes([Rule("mine", "No [PAD].")], "score.rules"), "score.rules[mine].text"),
    ],
)
def test_a_token_beyond_the_vocabulary_is_refused(context: RequestContext, make: Callable[[RequestContext], object], field: str) -> None:
    """It was an IndexError in the engine, for everybody in that step, or a number read beyond the logits."""
    with pytest.raises(InvalidArgument, match=rf"writes '\[PAD\]' as token {context.vocab_size}, outside the model's vocabulary") as caught:
        make(context)
    assert caught.value.field == field


def test_it_can_be_looked_at(context: RequestContext) -> None:
    """What Tokenize answers: the way to find out which token it is."""
    assert written_ids(Prompt(text="[PAD]"), context, "prompt")[-1] == context.vocab_size


def test_a_templates_own_ids_are_checked_when_it_is_read(tmp_path: Path) -> None:
    """Answers go to the head's logits: one beyond them would be read from somebody else's memory."""
    tokenizer = load(tmp_path, FAMILIES[FAMILY](), len(SPECIAL))  # a model of special tokens only
    assert not RuleBook(tokenizer, vocab_size=len(SPECIAL)).templates
