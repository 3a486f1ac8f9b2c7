"""Small tokenizers of every family, made as the checkpoints' own are: what `tokenizer.json` says, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from polyhead.server.text import tokenizer as tokenizer_module

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
SPECIAL = [UNKNOWN, BOS, EOS, "<|assistant|>"]
_MERGES = ["P a", "r i", "ri s", "Pa ris", "▁ Paris", "▁ x", "▁ f", "i s", "▁ is", "▁ a", "e s", "Y es", "▁ Yes", "N o", "▁ No", "▁ ▁"]
_LETTERS = ["▁", *"Parisxf()aYesNo.\n"]
_PIECES = list(dict.fromkeys([*_LETTERS, *("".join(pair.split()) for pair in _MERGES)]))
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_WORDS = ["f", "(", ")", "x", "Paris", "is", "a", ".", "Yes", "No"]


def ids(*tokens: str) -> dict[str, int]:
    return {token: index for index, token in enumerate(dict.fromkeys([*SPECIAL, *tokens]))}


def byte_level(prefix_space: bool = False) -> Tokenizer:
    """GPT-2, Llama 3, Qwen, SmolLM2."""
    tokenizer = Tokenizer(models.BPE(vocab=ids(*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġx", "Ġa"), merges=[("Ġ", "x"), ("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_legacy() -> Tokenizer:
    """Llama 2, Mistral, Phi 3: a space before every run of text, after special tokens, too."""
    tokenizer = _pieces()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = _taking_off(1)
    return tokenizer


def sentencepiece(scheme: str) -> Tokenizer:
    """The same without the legacy: "first", "always" or "never" a space before a text."""
    tokenizer = _pieces()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = _taking_off(0 if scheme == "never" else 1)
    return tokenizer


def unigram() -> Tokenizer:
    """T5, XLM: no bytes to fall back to."""
    pieces = [(piece, -float(rank + 1)) for rank, piece in enumerate(ids(*_PIECES))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    return tokenizer


def wordpiece() -> Tokenizer:
    """BERT: words, and spaces between them that were not there."""
    tokenizer = Tokenizer(models.WordPiece(ids(*_WORDS, "##is", "##x"), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def word_level() -> Tokenizer:
    """Whole words, nothing else."""
    tokenizer = Tokenizer(models.WordLevel(ids(*_WORDS), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


FAMILIES: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": byte_level,
    "byte-level, prefix space": lambda: byte_level(prefix_space=True),
    "sentencepiece, legacy": sentencepiece_legacy,
    "sentencepiece, first": lambda: sentencepiece("first"),
    "sentencepiece, always": lambda: sentencepiece("always"),
    "sentencepiece, never": lambda: sentencepiece("never"),
    "unigram": unigram,
    "wordpiece": wordpiece,
    "word-level": word_level,
}


def save(
    folder: Path, tokenizer: Tokenizer, *, bos: bool = True, eos: bool = False, cut_to: int = 0, added: tuple[str, ...] = (), chat: str = ""
) -> Path:
    """A checkpoint's tokenizer files. `eos` behind every text; `cut_to`: truncation and padding as a training left them."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])  # special ones are text in messages
    around = " ".join(token for token, is_there in ((BOS, bos), ("$A", True), (EOS, eos)) if is_there)
    specials = [(token, tokenizer.token_to_id(token)) for token in (BOS, EOS)]
    tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=specials)
    whole = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token=UNKNOWN)
    whole.chat_template = chat or None
    whole.save_pretrained(folder)
    if cut_to:
        path = folder / "tokenizer.json"
        content = json.loads(path.read_text())
        content["truncation"] = {"direction": "Right", "max_length": cut_to, "strategy": "LongestFirst", "stride": 0}
        padding = {"strategy": {"Fixed": cut_to}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0}
        content["padding"] = {**padding, "pad_token": UNKNOWN}
        path.write_text(json.dumps(content))
    return folder


def load(folder: Path, tokenizer: Tokenizer, vocab_size: int | None = None, **options: object) -> tokenizer_module.Tokenizer:
    """The same, as a server reads it."""
    return tokenizer_module.Tokenizer.load(save(folder, tokenizer, **options), vocab_size)  # type: ignore[arg-type]


def _pieces() -> Tokenizer:
    merges = [tuple(pair.split()) for pair in _MERGES]
    return Tokenizer(
        models.BPE(vocab=ids(*_BYTES, *_PIECES), merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)  # type: ignore[arg-type]
    )


def _taking_off(num_spaces: int) -> decoders.Decoder:
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", num_spaces, 0)]
    return decoders.Sequence(parts)  # type: ignore[return-value]
