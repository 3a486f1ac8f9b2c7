"""The tokenizers of the large families, with a vocabulary of one's own: what stands before and behind the model in `tokenizer.json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

Merges = Sequence[tuple[str, str]]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # as byte-level tokenizers write them
FALLBACK_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # as SentencePiece writes them
UNKNOWN = "<unk>"


def ids(tokens: Iterable[str]) -> dict[str, int]:
    """Tokens numbered in their order, each once."""
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}


def byte_level(tokens: Iterable[str], merges: Merges, *, prefix_space: bool = False, use_regex: bool = True) -> Tokenizer:
    """GPT-2, Llama 3, Qwen, SmolLM2."""
    tokenizer = Tokenizer(models.BPE(vocab=ids(tokens), merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def sentencepiece_bpe(tokens: Iterable[str], merges: Merges) -> Tokenizer:
    """Pieces that fall back to bytes, with nothing yet that makes a space of "▁" or takes one off."""
    return Tokenizer(models.BPE(vocab=ids(tokens), merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))


def sentencepiece_legacy(tokens: Iterable[str], merges: Merges) -> Tokenizer:
    """Llama 2, Mistral, Phi 3: a space before every run of text, after special tokens, too."""
    tokenizer = sentencepiece_bpe(tokens, merges)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = without_first_spaces(1)
    return tokenizer


def unigram(pieces: list[tuple[str, float]], scheme: str) -> Tokenizer:
    """T5, XLM: no bytes to fall back to. The first piece is the unknown token."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return tokenizer


def without_first_spaces(num_spaces: int) -> decoders.Decoder:
    """SentencePiece's decoder: bytes joined, "▁" as spaces, and so many taken off at the start."""
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", num_spaces, 0)]
    return decoders.Sequence(parts)  # type: ignore[return-value]


def add_tokens(tokenizer: Tokenizer, *, special: Iterable[str] = (), plain: Iterable[str] = ()) -> None:
    """Special tokens, then added ones that are not special."""
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
