"""Whether a trainer's copy of the trunk is still the trunk. Compared by SHA-256 of the bytes in the checkpoint's own dtype.

A float32 copy of a bfloat16 or float16 checkpoint can be compared, too: widening is exact, so an untouched copy narrows back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from polyhead.client.errors import FailedPrecondition
from polyhead.client.results.records import TrunkInfo
from polyhead.client.weights.tensors import Source

__all__ = ["compare_with_trunk", "is_trunk_embedding"]

_CHANGED = "changed"


def compare_with_trunk(
    given: Mapping[str, Source],
    standard: Mapping[str, str],
    trunk: TrunkInfo,
    trunk_sha256: dict[str, str],
    ignored: dict[str, str],
) -> None:
    """Fill `trunk_sha256` and `ignored` for the trunk tensors in `given`. Raises FailedPrecondition naming a changed one."""
    changed = []
    for name, source in given.items():
        known = trunk.tensors[standard[name]]
        digest = _digest_as(source, known.dtype)
        if digest == known.sha256:
            trunk_sha256[known.name] = digest
            ignored[name] = "the trunk's, unchanged"
        elif digest:
            changed.append(name)
        else:
            ignored[name] = f"the trunk's, not compared: given as {source.dtype}, the checkpoint has {known.dtype}"
    if changed:
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise FailedPrecondition(
            f"the weights hold a tensor of the trunk that was changed: {changed[0]!r}{more}\n"
            "hint: freeze the trunk (requires_grad_(False) for embeddings and lower layers) and train again",
            field=changed[0],
        )


def is_trunk_embedding(output: Source, given: Mapping[str, Source], trunk: TrunkInfo) -> bool:
    """Whether a tied model's lm_head is still its embedding: the checkpoint's bytes, or those of an embedding beside it."""
    hashes = {(tensor.dtype, tensor.sha256) for tensor in trunk.tensors.values()}
    if any((dtype, _digest_as(output, dtype)) in hashes for dtype in {tensor.dtype for tensor in trunk.tensors.values()}):
        return True
    twins = [
        source
        for source in given.values()
        if source is not output and (source.dtype, source.shape) == (output.dtype, output.shape)
    ]
    return any(_sha256(twin) == _sha256(output) for twin in twins)


def _digest_as(source: Source, dtype: str) -> str:
    """SHA-256 of the tensor in `dtype`; "changed" if it is no widened copy; "" if the two cannot be compared."""
    if source.dtype == dtype:
        return _sha256(source)
    if source.dtype == "float32" and dtype in ("bfloat16", "float16"):
        narrow = _narrowed(source, dtype)
        return hashlib.sha256(narrow).hexdigest() if narrow is not None else _CHANGED
    return ""


def _narrowed(source: Source, dtype: str) -> bytes | None:
    """The float32 numbers in `dtype`; None if that would lose anything."""
    if dtype == "bfloat16":
        bits = np.frombuffer(source.read(), dtype="<u4")
        return None if np.any(bits & 0xFFFF) else (bits >> 16).astype("<u2").tobytes()
    wide = np.frombuffer(source.read(), dtype="<f4")
    with np.errstate(over="ignore"):
        narrow = wide.astype("<f2")
    return narrow.tobytes() if np.array_equal(narrow.astype("<f4"), wide) else None


def _sha256(source: Source) -> str:
    return hashlib.sha256(source.read()).hexdigest()
