"""A tiny model with a tokenizer that serves as any other does: bytes as tokens, chat turns, one-token answers to rules."""

from __future__ import annotations

from pathlib import Path

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.heads.models import save_tiny
from tests.server.text.tiny_tokenizers import pipelines

CONTEXT = 4096
BOS, EOS = 1, 2
_SPECIAL = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
_MERGES = [("Ġ", "Y"), ("ĠY", "e"), ("ĠYe", "s"), ("Ġ", "N"), ("ĠN", "o")]  # " Yes" and " No" are what a rule head answers
_CHAT = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
VOCABULARY = pipelines.ids([*_SPECIAL, *pipelines.BYTES, *map("".join, _MERGES)])
VOCAB = len(VOCABULARY)


def byte_id(character: str) -> int:
    """The token id of one ASCII character."""
    return VOCABULARY[character if character != " " else "Ġ"]


def save_tiny_llama(folder: Path, tied: bool = False) -> Path:
    """Four layers, 32 wide, untied unless asked: each head version carries its own output matrix."""
    save_tiny("llama", folder, vocab_size=VOCAB, max_position_embeddings=CONTEXT, tie_word_embeddings=tied)
    tokenizer = pipelines.byte_level(VOCABULARY, _MERGES, use_regex=False)
    pipelines.add_tokens(tokenizer, special=_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    saved.chat_template = _CHAT
    saved.save_pretrained(folder)
    return folder
