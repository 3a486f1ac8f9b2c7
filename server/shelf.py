"""Brings stored versions into memory, ready to run: memory is checked first, a file shared by versions is loaded once.

Knows the store, the loader and the budget; not which set is active.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from polyhead.heads.manifest import HeadManifest
from polyhead.heads.store import HeadStore, VersionRecord
from polyhead.server.engine.live import LiveHead, ServedHead
from polyhead.server.engine_port import EnginePort
from polyhead.server.head_loader import HeadFile, HeadLoader
from polyhead.server.manifests import ServedTrunk
from polyhead.server.residency import Residency


class Shelf:
    """One load at a time; methods block."""

    def __init__(
        self, store: HeadStore, trunk: ServedTrunk, loader: HeadLoader, engine: EnginePort, residency: Residency
    ) -> None:
        self.residency = residency
        self.loader = loader
        self._store = store
        self._trunk = trunk
        self._engine = engine
        self._loading = threading.Lock()

    def load(self, records: list[VersionRecord], keep: Iterable[str]) -> dict[str, ServedHead]:
        """Heads by name. `keep` are digests that stay in memory. ResourceExhausted before anything is allocated; DataLoss."""
        ready = [self.residency.served(record.name, record.version) for record in records]
        if all(ready):  # a rollback does not wait for the canary of somebody's push
            return {head.name: head for head in ready if head is not None}
        with self._loading:
            missing = {record.digest: record for record in records if self.residency.live(record.digest) is None}
            num_bytes = sum(self.loader.num_bytes(record.manifest.output) for record in missing.values())
            wanted = {record.digest for record in records}
            with self.residency.room_for(num_bytes, keep=wanted.union(keep)):
                built: dict[str, LiveHead] = {}
                heads = {record.name: self._serve(record, built) for record in records}
            for head in heads.values():  # all or none: a failure above leaves nothing behind
                self.residency.add(head)
            return heads

    def try_out(self, digest: str, name: str, manifest: HeadManifest, file: HeadFile, keep: Iterable[str]) -> LiveHead:
        """Build a head that is not stored yet and run it once: the weights, if all is well. The caller keeps them or not."""
        self.loader.check(file, manifest.output)
        with self._loading, self.residency.room_for(self.loader.num_bytes(manifest.output), keep=set(keep)):
            live = self.residency.live(digest) or self.loader.build(digest, file, manifest.output)
            self._engine.warm_up(ServedHead(name, 0, manifest, live))
            self.residency.watch(live)
        return live

    def _serve(self, record: VersionRecord, built: dict[str, LiveHead]) -> ServedHead:
        if known := self.residency.served(record.name, record.version):
            return known
        self._trunk.check_trunk(record.manifest.trunk_id)
        live = self.residency.live(record.digest) or built.get(record.digest)
        if live is None:
            file = self.loader.open(self._store.read_blob(record.digest))
            self.loader.check(file, record.manifest.output)
            live = built[record.digest] = self.loader.build(record.digest, file, record.manifest.output)
        served = ServedHead(record.name, record.version, record.manifest, live)
        self._engine.warm_up(served)
        return served
