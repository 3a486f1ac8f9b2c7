"""A text that must be too long is refused by its bytes, and no text that may fit is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from polyhead.heads.format.errors import InvalidArgument
from polyhead.server.text import tokenizer as tokenizer_module
from polyhead.server.text.text_bounds import check_fits, most_bytes_per_token, num_sure_bytes
from polyhead.v1.types_pb2 import Chat, ChatMessage, Prompt
from tests.e2e.tiny import save_tiny_llama

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TEXTS = ["a" * 300, "word " * 100, "  \n" * 100, "é漢🙂" * 50, "각" * 40, "ÅÅ" * 40, "\ufffd" * 30, "Ġ▁<0x41>" * 20]


def byte_level(**changes: Any) -> Tokenizer:
    merges = [("a", "a"), ("aa", "aa"), ("Ġ", "Ġ")]
    vocab = {token: index for index, token in enumerate([*BYTES, *("".join(pair) for pair in merges)])}
    made = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return changed(made, **changes)


def byte_fallback(**changes: Any) -> Tokenizer:
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "aa", "漢"]
    vocab = {token: index for index, token in enumerate(tokens)}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[("a", "a")], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return changed(made, **changes)


def changed(tokenizer: Tokenizer, **parts: Any) -> Tokenizer:
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    return tokenizer


@pytest.mark.parametrize(
    ("tokenizer", "most"),
    [
        (byte_level(), 4),
        (byte_level(normalizer=normalizers.NFC()), 12),
        (byte_level(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Digits(), pre_tokenizers.ByteLevel()])), 4),
        (byte_fallback(), 6),
    ],
)
def test_no_token_stands_for_more(tokenizer: Tokenizer, most: int) -> None:
    assert most_bytes_per_token(tokenizer.to_str()) == most
    for each in TEXTS:
        assert len(tokenizer.encode(each).ids) * most >= len(each.encode())


def test_an_added_token_counts() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<|a long one|>", special=True)])
    assert most_bytes_per_token(tokenizer.to_str()) == len("<|a long one|>")


def swallowing() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(normalizer=normalizers.Strip()),
        byte_level(normalizer=normalizers.NFKC()),
        byte_level(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel()])),
        byte_level(pre_tokenizer=pre_tokenizers.Sequence([pre_tokenizers.Split("x", "removed"), pre_tokenizers.ByteLevel()])),
        byte_fallback(normalizer=normalizers.Replace("   ", " ")),
        Tokenizer(models.BPE(vocab={"a": 0}, merges=[])),
        Tokenizer(models.WordLevel(vocab={"<unk>": 0}, unk_token="<unk>")),
        Tokenizer(models.WordPiece(vocab={"[UNK]": 0}, unk_token="[UNK]")),
        swallowing(),
    ],
)
def test_a_tokenizer_that_drops_text_has_no_bound(tokenizer: Tokenizer) -> None:
    assert most_bytes_per_token(tokenizer.to_str()) is None
    check_fits(1 << 30, None, 1, "f")


def test_the_refusal() -> None:
    check_fits(400, 4, 100, "prompts[0]")
    with pytest.raises(InvalidArgument, match="401 bytes of text are more than 100 tokens") as caught:
        check_fits(401, 4, 100, "prompts[0]")
    assert caught.value.field == "prompts[0]"


def test_what_a_template_may_leave_out_does_not_count() -> None:
    turns = [("user", " é "), ("assistant", "x" * 99), ("user", "y")]
    messages = [ChatMessage(role=role, content=content) for role, content in turns]
    assert num_sure_bytes(Prompt(chat=Chat(messages=messages), assistant_prefix="zz")) == 5
    assert num_sure_bytes(Prompt(text="é")) == 2


def test_a_loaded_tokenizer_knows_its_bound_and_decodes_long_texts_as_short_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = tokenizer_module.Tokenizer.load(save_tiny_llama(tmp_path))
    assert tokenizer.most_bytes_per_token == max(map(len, json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]))
    ids = tokenizer.encode("<|user|>héllo Yes No 漢🙂" * 20)
    short = [tokenizer.decode(ids, skip) for skip in (True, False)]
    monkeypatch.setattr(tokenizer_module, "_LONG", 1)
    assert [tokenizer.decode(ids, skip) for skip in (True, False)] == short
