"""Small tokenizers of every family, made as the checkpoints' own are: what `tokenizer.json` says, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from polyhead.server.text import tokenizer as tokenizer_module
from tests.server.text.tiny_tokenizers import pipelines
from tests.server.text.tiny_tokenizers.pipelines import BYTES, FALLBACK_BYTES, UNKNOWN

BOS, EOS = "<s>", "</s>"
SPECIAL = [UNKNOWN, BOS, EOS, "<|assistant|>"]
_PAIRS = ["P a", "r i", "ri s", "Pa ris", "▁ Paris", "▁ x", "▁ f", "i s", "▁ is", "▁ a", "e s", "Y es", "▁ Yes", "N o", "▁ No", "▁ ▁"]
_MERGES = [(first, second) for first, second in map(str.split, _PAIRS)]
_LETTERS = ["▁", *"Parisxf()aYesNo.\n"]
_PIECES = list(dict.fromkeys([*_LETTERS, *map("".join, _MERGES)]))
_WORDS = ["f", "(", ")", "x", "Paris", "is", "a", ".", "Yes", "No"]


def byte_level(prefix_space: bool = False) -> Tokenizer:
    """GPT-2, Llama 3, Qwen, SmolLM2."""
    return pipelines.byte_level([*SPECIAL, *BYTES, "Ġx", "Ġa"], [("Ġ", "x"), ("Ġ", "a")], prefix_space=prefix_space)


def sentencepiece_legacy() -> Tokenizer:
    """Llama 2, Mistral, Phi 3: a space before every run of text, after special tokens, too."""
    return pipelines.sentencepiece_legacy([*SPECIAL, *FALLBACK_BYTES, *_PIECES], _MERGES)


def sentencepiece(scheme: str) -> Tokenizer:
    """The same without the legacy: "first", "always" or "never" a space before a text."""
    tokenizer = pipelines.sentencepiece_bpe([*SPECIAL, *FALLBACK_BYTES, *_PIECES], _MERGES)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = pipelines.without_first_spaces(0 if scheme == "never" else 1)
    return tokenizer


def unigram() -> Tokenizer:
    """T5, XLM: no bytes to fall back to."""
    pieces = [(piece, -float(rank + 1)) for rank, piece in enumerate(pipelines.ids([*SPECIAL, *_PIECES]))]
    return pipelines.unigram(pieces, "always")


def wordpiece() -> Tokenizer:
    """BERT: words, and spaces between them that were not there."""
    tokenizer = Tokenizer(models.WordPiece(pipelines.ids([*SPECIAL, *_WORDS, "##is", "##x"]), unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def word_level() -> Tokenizer:
    """Whole words, nothing else."""
    tokenizer = Tokenizer(models.WordLevel(pipelines.ids([*SPECIAL, *_WORDS]), unk_token=UNKNOWN))
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
    pipelines.add_tokens(tokenizer, special=SPECIAL, plain=added)  # special ones are text in messages
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
