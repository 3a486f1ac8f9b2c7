"""Small tokenizers with a chat template, one of each kind that users bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.server.text.tiny_tokenizers import pipelines
from tests.server.text.tiny_tokenizers.pipelines import BYTES, FALLBACK_BYTES, UNKNOWN

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
    "{% else %} {{ message['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
)
_LETTERS = [chr(code) for code in range(33, 127)]
_WORDS = ("Yes", "No")
_CONTROL = (UNKNOWN, "<s>", "</s>")
_NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": UNKNOWN}


def byte_level(template: str = CHATML, special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), **more: Any) -> Any:
    """Bytes as tokens, " Yes" and " No" as one; `<think>` is added and not special."""
    merges = _merges("Ġ")
    tokenizer = pipelines.byte_level([*special, *BYTES, *map("".join, merges)], merges, use_regex=False)
    pipelines.add_tokens(tokenizer, special=special, plain=("<think>", "</think>"))
    return _saved(tokenizer, template, {"eos_token": special[0], **more})


def sentencepiece(template: str = LLAMA2, appends_eos: bool = False) -> Any:
    """As Llama 2 and Mistral: a space is put before each text, so " Yes" is two tokens and "Yes" is one. Adds a BOS."""
    merges = _merges("▁")
    tokenizer = pipelines.sentencepiece_legacy([*_CONTROL, *FALLBACK_BYTES, "▁", *_LETTERS, *map("".join, merges)], merges)
    end = " </s>" if appends_eos else ""
    tokenizer.post_processor = processors.TemplateProcessing(single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)])
    pipelines.add_tokens(tokenizer, special=_CONTROL)
    return _saved(tokenizer, template, _NAMES)


def unigram(template: str = LLAMA2) -> Any:
    """SentencePiece's other model: its control tokens are pieces of its vocabulary, likelier than any spelling of them."""
    tokens = [*_CONTROL, "▁", *_LETTERS, "▁Yes", "▁No"]
    tokenizer = pipelines.unigram([(token, 0.0 if token in _CONTROL else -5.0) for token in tokens], "first")
    pipelines.add_tokens(tokenizer, special=_CONTROL)
    return _saved(tokenizer, template, _NAMES)


def word_level(template: str = CHATML, words: Sequence[str] = ("user", "assistant", "Hi", "Who", "?")) -> Any:
    """A few words; all others, " Yes" and " No" too, are the unknown token. Its control tokens are words of its vocabulary."""
    special = ["[UNK]", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.WordLevel(vocab=pipelines.ids([*special, *words]), unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    pipelines.add_tokens(tokenizer, special=special)
    return _saved(tokenizer, template, {"eos_token": "<|im_end|>", "unk_token": "[UNK]"})


def _merges(space: str) -> list[tuple[str, str]]:
    """Those that make one token of each word with a space before it."""
    return [((space + word)[: i + 1], word[i]) for word in _WORDS for i in range(len(word))]


def _saved(tokenizer: Tokenizer, template: str, names: dict[str, Any]) -> Any:
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    whole.chat_template = template
    return whole
