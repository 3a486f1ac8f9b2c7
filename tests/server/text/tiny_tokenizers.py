"""Tokenizers of a few hundred tokens, one of each kind that users bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

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


def byte_level(template: str = CHATML, special: Sequence[str] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>"), **more: Any) -> Any:
    """Bytes as tokens, " Yes" and " No" as one; `<think>` is added and not special."""
    merges = [(("Ġ" + word)[: i + 1], word[i]) for word in _WORDS for i in range(len(word))]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<think>", "</think>")])
    return _saved(tokenizer, template, {"eos_token": special[0], **more})


def sentencepiece(template: str = LLAMA2, appends_eos: bool = False) -> Any:
    """As Llama 2 and Mistral: a space is put before each text, so " Yes" is two tokens and "Yes" is one. Adds a BOS."""
    merges = [(("▁" + word)[: i + 1], word[i]) for word in _WORDS for i in range(len(word))]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_LETTERS, *(a + b for a, b in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    end = " </s>" if appends_eos else ""
    tokenizer.post_processor = processors.TemplateProcessing(single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:3]])
    return _saved(tokenizer, template, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def unigram(template: str = LLAMA2) -> Any:
    """SentencePiece's other model: its control tokens are pieces of its vocabulary, likelier than any spelling of them."""
    tokens = ["<unk>", "<s>", "</s>", "▁", *_LETTERS, "▁Yes", "▁No"]
    pieces = [(token, 0.0 if index < 3 else -5.0) for index, token in enumerate(tokens)]
    tokenizer = Tokenizer(models.Unigram(vocab=pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in tokens[:3]])
    return _saved(tokenizer, template, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})


def word_level(template: str = CHATML, words: Sequence[str] = ("user", "assistant", "Hi", "Who", "?")) -> Any:
    """A few words; all others, " Yes" and " No" too, are the unknown token. Its control tokens are words of its vocabulary."""
    special = ["[UNK]", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return _saved(tokenizer, template, {"eos_token": "<|im_end|>", "unk_token": "[UNK]"})


def _saved(tokenizer: Tokenizer, template: str, names: dict[str, Any]) -> Any:
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    whole.chat_template = template
    return whole
