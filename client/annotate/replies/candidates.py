"""What made a reply, as a row: enough to draw it again. Converts samples; knows nothing of people."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polyhead.client import FinishReason, Sample, to_plain
from polyhead.client.annotate.storage.database import new_id, sha256, to_json

USABLE = (FinishReason.EOS, FinishReason.STOP_ID, FinishReason.STOP_STRING, FinishReason.LENGTH)
_EVERYDAY = frozenset({"policy", "reference", "preference", "rule", "value"})  # first heads: words that replies use without meaning a head


def candidate_of_sample(
    sample: Sample, turn_id: str, *, now: int, leak_words: Iterable[str], evidence: Sequence[Mapping[str, str]] = ()
) -> dict[str, Any]:
    """The row of a live reply. `sample_seed` is a text: 64 bits without sign do not fit SQLite's integers."""
    name, _, _ = sample.head.partition("@")
    return {
        "id": new_id(), "turn_id": turn_id, "origin": "live", "text": sample.text, "text_sha256": sha256(sample.text),
        "head": sample.head, "head_name": name, "head_version": sample.head_version, "digest": sample.digest,
        "spans_json": _json(sample.spans), "generation": sample.generation, "trunk_id": sample.served.trunk_id,
        "precision": sample.served.precision,
        "tokenizer_sha256": sample.served.tokenizer_sha256, "request_id": sample.request_id, "prompt_index": sample.prompt_index,
        "arm_index": sample.arm_index, "sample_index": sample.sample_index, "prompt_token_ids": pack_ids(sample.prompt_token_ids),
        "token_ids": pack_ids(sample.token_ids), "logprobs": pack_floats(sample.logprobs),
        "sampling_logprobs": pack_floats(sample.sampling_logprobs), "sampling_json": _json(sample.sampling),
        "sample_seed": str(sample.sample_seed), "finish_reason": sample.finish_reason.value, "is_terminated": int(sample.terminated),
        "stop": sample.stop, "is_valid": int(sample.valid), "invalid_json": _json(sample.invalid_reasons), "format": sample.format,
        "scores_json": _json(sample.scores), "reward_json": _json(sample.reward), "ood_json": _json(sample.ood),
        "num_cached_tokens": sample.num_cached_tokens, "evidence_json": _cards(evidence),
        "has_identity_leak": int(has_leak(sample.text, (sample.digest, f"{name}@{sample.head_version}", name, *leak_words))),
        "created_at": now,
    }  # fmt: skip


def candidate_of_text(
    text: str, *, origin: str, now: int, item_id: str | None = None, account_id: str | None = None,
    evidence: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:  # fmt: skip
    """The row of a reply that was imported, or that a person wrote."""
    return {
        "id": new_id(), "item_id": item_id, "origin": origin, "text": text, "text_sha256": sha256(text), "head": "", "head_name": "",
        "account_id": account_id, "evidence_json": _cards(evidence), "created_at": now,
    }  # fmt: skip


def has_leak(text: str, words: Iterable[str]) -> bool:
    """Whether a reply says where it comes from. The first heads' plain names are everyday words, and say nothing."""
    sought = [re.escape(word) for word in words if len(word) > 1 and word.lower() not in _EVERYDAY]
    return bool(sought) and re.search(rf"(?<!\w)(?:{'|'.join(sought)})(?!\w)", text, re.IGNORECASE) is not None


def pack_ids(ids: Iterable[int]) -> bytes:
    return np.asarray(list(ids), "<u4").tobytes()


def unpack_ids(blob: bytes | None) -> list[int]:
    return [int(each) for each in np.frombuffer(blob or b"", "<u4")]


def pack_floats(numbers: Any) -> bytes:
    return np.asarray(numbers, "<f4").tobytes()


def _cards(evidence: Sequence[Mapping[str, str]]) -> str | None:
    return to_json(list(evidence)) if evidence else None


def _json(value: Any) -> str | None:
    return None if value is None else to_json(to_plain(value))
