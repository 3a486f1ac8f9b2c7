"""Hashes of stored tensors, kept for the few files that trainers compare with just now. Knows no versions."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence

from polyhead.heads.format.errors import DataLoss, FailedPrecondition, InvalidArgument
from polyhead.heads.store.delta import TensorHash, hash_tensors
from polyhead.heads.store.store import HeadStore

MAX_FILES = 8  # a file never changes, so what is kept never goes stale


class TensorHashes:
    """Methods block; call them from a worker thread."""

    def __init__(self, store: HeadStore) -> None:
        self._store = store
        self._kept: OrderedDict[str, Sequence[TensorHash]] = OrderedDict()
        self._lock = threading.Lock()  # held while hashing: the second of two trainers finds what the first one asked for

    def of(self, blob: str) -> Sequence[TensorHash]:
        """In file order. DataLoss if the file is missing or no longer a head file."""
        with self._lock:
            if blob not in self._kept:
                self._kept[blob] = self._hash(blob)
            self._kept.move_to_end(blob)
            while len(self._kept) > MAX_FILES:
                self._kept.popitem(last=False)
            return self._kept[blob]

    def _hash(self, blob: str) -> Sequence[TensorHash]:
        with self._store.open_blob(blob) as file:
            try:
                return hash_tensors(file)
            except (InvalidArgument, FailedPrecondition):
                raise DataLoss(f"the stored head is damaged: {blob[:12]}...") from None
