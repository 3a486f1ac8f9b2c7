"""Which tensors differ from those of a stored version: a push against it sends only these. Makes no calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from polyhead.client.results.records import HeadVersion, StoredTensor
from polyhead.client.weights.canonical import CanonicalFile
from polyhead.client.weights.tensors import Source

__all__ = ["Base", "changed_tensors"]

WORTH_IT = 8  # a delta that leaves out less than one in so many bytes costs the server more than it spares the wire


@dataclass(frozen=True, slots=True)
class Base:
    """A stored version, and what its file holds."""

    head: HeadVersion
    tensors: Mapping[str, StoredTensor]


def changed_tensors(given: Mapping[str, Source], file: CanonicalFile, base: Base | None, *, is_whole: bool) -> dict[str, Source]:
    """What to send of `given`, whose hashes are in `file`; all of it where a delta is impossible or not worth it.

    `is_whole`: `given` is a whole head, so that it can be sent as one.
    """
    if base is None or not _fits(given, base, is_whole):
        return dict(given)
    changed = {name: source for name, source in given.items() if file.tensor_sha256[name] != base.tensors[name].sha256}
    if not changed:  # a file holds at least one tensor
        smallest = min(given, key=lambda name: (given[name].num_bytes, name))
        return {smallest: given[smallest]}
    num_spared = sum(source.num_bytes for name, source in given.items() if name not in changed)
    return dict(given) if is_whole and WORTH_IT * num_spared < file.num_bytes else changed


def _fits(given: Mapping[str, Source], base: Base, is_whole: bool) -> bool:
    """Whether these are the base's tensors (or some of them) by name, dtype and shape. An adapter's file is no base."""
    if base.head.manifest.lora is not None or (is_whole and given.keys() != base.tensors.keys()):
        return False
    found = {name: base.tensors.get(name) for name in given}
    return all(each is not None and (each.dtype, each.shape) == (given[name].dtype, given[name].shape) for name, each in found.items())
