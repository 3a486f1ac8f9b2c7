"""Conversations continued from ids: the same ids as the whole conversation's, and one end to a reply, whatever the template writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from polyhead.server.rpc.messages.prompts import prompt_ids
from polyhead.server.rpc.request_context import RequestContext
from polyhead.server.text import tokenizer as tokenizer_module
from polyhead.v1.types_pb2 import ChatMessage, Continuation, Prompt

SPECIAL = ["<s>", "</s>", "<|user|>", "<|assistant|>", "<|im_start|>", "<|im_end|>", "<|endoftext|>"]
VOCABULARY = {token: index for index, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
SPACE = VOCABULARY["Ġ"]


@dataclass(frozen=True)
class Template:
    """A chat template, the token that it writes to end a reply ("": none), and the checkpoint's EOS tokens."""

    turn: str
    opening: str
    end: str
    eos: tuple[str, ...]

    @property
    def end_id(self) -> int:
        return VOCABULARY[self.end]

    @property
    def eos_ids(self) -> frozenset[int]:
        return frozenset(VOCABULARY[token] for token in self.eos)

    def tokenizer(self) -> tokenizer_module.Tokenizer:
        tokenizer = Tokenizer(models.BPE(vocab=VOCABULARY, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
        whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token=self.eos[0])
        loop = "<s>{% for message in messages %}" + self.turn + "{% endfor %}"
        whole.chat_template = loop + "{% if add_generation_prompt %}" + self.opening + "{% endif %}"
        return tokenizer_module.Tokenizer(whole, "")


_PLAIN = "<|{{ message['role'] }}|>{{ message['content'] }}"
_CHATML = "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
TEMPLATES = {
    "end": Template(_PLAIN + "</s>", "<|assistant|>", "</s>", ("</s>",)),
    "space before the end": Template(_PLAIN + " </s>", "<|assistant|>", "</s>", ("</s>", "<|endoftext|>")),
    "chatml": Template(_CHATML + "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", ("<|endoftext|>", "<|im_end|>")),
    "chatml, end is no EOS": Template(_CHATML + "<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", ("<|endoftext|>",)),
    "chatml, space before the end": Template(_CHATML + " <|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>", ("<|endoftext|>",)),
    "the next turn is the end": Template(_PLAIN, "<|assistant|>", "", ("<|endoftext|>", "<|user|>")),
    "words only": Template("{{ message['role'] }}:{{ message['content'] }}\n\n", "assistant:", "", ("</s>",)),
}
ENDING = {name: template for name, template in TEMPLATES.items() if template.end}
TOKENIZERS = {name: template.tokenizer() for name, template in TEMPLATES.items()}
contents = st.text(alphabet="ab :\n€<|", min_size=1, max_size=8)


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def whole_and_continued(name: str, reply: str, ending: list[int], *next_turns: dict[str, str]) -> tuple[list[int], list[int]]:
    """Ids of the whole conversation, and of the one continued from a reply that was sampled as `reply` and then `ending`."""
    tokenizer, first = TOKENIZERS[name], message("user", "Hi")
    prompt = tokenizer.encode_chat([first], "messages")
    sampled = [*tokenizer.encode(reply, special_tokens=False), *ending]
    following = tokenizer.encode_next_turns(list(next_turns), sampled[-1], TEMPLATES[name].eos_ids, "messages")
    whole = tokenizer.encode_chat([first, message("assistant", reply), *next_turns], "messages")
    return whole, [*prompt, *sampled, *following]


@given(st.sampled_from(sorted(ENDING)), contents, contents)
def test_a_reply_that_ended_as_the_template_ends_one_continues_to_the_same_ids(name: str, reply: str, question: str) -> None:
    """Cut off before its end, ended with the template's own token, or with the space that stands before it, too."""
    template = TEMPLATES[name]
    has_space = " " + template.end in template.turn
    for ending in ([], [SPACE, template.end_id] if has_space else [template.end_id]):
        whole, continued = whole_and_continued(name, reply, ending, message("user", question))
        assert continued == whole


@pytest.mark.parametrize("name", [name for name in ENDING if "space" in name])
def test_a_space_that_was_not_sampled_is_not_put_behind_the_end(name: str) -> None:
    """The ids of the reply stand as they were sampled; the turn behind it begins as in the whole conversation."""
    end = TEMPLATES[name].end_id
    whole, continued = whole_and_continued(name, "Yes", [end], message("user", "And?"))
    at = len(whole) - 1 - whole[::-1].index(end, whole[::-1].index(end) + 1)  # the end of the reply, last but one of all ends
    assert whole[at - 1 : at + 1] == [SPACE, end]
    assert continued == whole[: at - 1] + whole[at:]


@pytest.mark.parametrize("name", [name for name in ENDING if "<|endoftext|>" in TEMPLATES[name].eos])
def test_a_reply_that_ended_with_another_eos_gets_no_second_end(name: str) -> None:
    """Both were written, <|endoftext|><|im_end|>: what no template writes, and no model was trained on."""
    template, other = TEMPLATES[name], VOCABULARY["<|endoftext|>"]
    whole, continued = whole_and_continued(name, "Yes", [other], message("user", "And?"))
    end = [SPACE, template.end_id] if " " + template.end in template.turn else [template.end_id]
    reply = TOKENIZERS[name].encode("Yes", special_tokens=False)
    [at] = [index for index in range(len(whole)) if whole[index : index + len(reply + end)] == reply + end]
    assert continued == [*whole[:at], *reply, other, *whole[at + len(reply + end) :]]


def test_a_turn_that_is_the_end_is_opened_once_and_never_left_out() -> None:
    """The next turn's own mark ends a reply there: it is not written twice, and not taken for the end that another EOS stands for."""
    name, user, other = "the next turn is the end", VOCABULARY["<|user|>"], VOCABULARY["<|endoftext|>"]
    whole, continued = whole_and_continued(name, "Yes", [user], message("user", "And?"))
    assert continued == whole
    whole, continued = whole_and_continued(name, "Yes", [other], message("user", "And?"))
    assert [token for token in continued if token != other] == whole
    assert continued.count(other) == 1


def test_a_template_of_words_is_continued_in_words() -> None:
    for ending in ([], [VOCABULARY["</s>"]]):
        whole, continued = whole_and_continued("words only", "Yes", ending, message("user", "And?"))
        assert [token for token in continued if token not in ending] == whole


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_several_turns_may_follow(name: str) -> None:
    turns = [message("system", "Be brief."), message("user", "a"), message("assistant", "b"), message("user", "c")]
    whole, continued = whole_and_continued(name, "Yes", [], *turns)
    assert continued == whole


def test_a_request_continues_with_the_checkpoints_own_eos_ids() -> None:
    name, first = "chatml", message("user", "Hi")
    template, tokenizer, nothing = TEMPLATES[name], TOKENIZERS[name], cast(Any, None)
    context = RequestContext(tokenizer, nothing, nothing, nothing, len(VOCABULARY), 1024, template.eos_ids, nothing, nothing)
    sampled = [*tokenizer.encode("Yes", special_tokens=False), VOCABULARY["<|endoftext|>"]]
    turn = ChatMessage(role="user", content="And?")
    before = tokenizer.encode_chat([first], "messages")
    continuation = Continuation(prompt_token_ids=before, token_ids=sampled, messages=[turn])
    continued = prompt_ids(Prompt(continue_from=continuation), context, "prompt")
    assert continued == whole_and_continued(name, "Yes", sampled[-1:], message("user", "And?"))[1]
