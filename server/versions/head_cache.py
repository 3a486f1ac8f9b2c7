"""Heads in memory, ready to run, and how a stored version gets there: memory is checked first, a file shared by versions is loaded once,
a LoRA head comes with its base.

Knows the store, the loader and the budget; not which set is active.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.store.store import HeadStore, VersionRecord
from polyhead.server.engine.work.live import LiveHead, ServedHead
from polyhead.server.versions.engine_port import EnginePort
from polyhead.server.versions.head_loader import HeadFile, HeadLoader
from polyhead.server.versions.manifests import ServedTrunk
from polyhead.server.versions.residency import Pin, Residency


class HeadCache:
    """One load at a time; methods block."""

    def __init__(self, store: HeadStore, trunk: ServedTrunk, loader: HeadLoader, engine: EnginePort, residency: Residency) -> None:
        self.residency = residency
        self.loader = loader
        self._store = store
        self._trunk = trunk
        self._engine = engine
        self._loading = threading.Lock()

    def load(self, records: list[VersionRecord], pin: Pin, note: Callable[[str], None] = lambda step: None) -> dict[str, ServedHead]:
        """Heads by name; they stay in memory while `pin` lasts. ResourceExhausted before anything is allocated; DataLoss.

        `note` is told what the load waits for and what it reads; nothing if all heads are in memory.
        """
        for record in records:
            self.loader.check_served(f"{record.name}@{record.version}", record.manifest.lora)
        bases = [base for record in records if (base := self._base(record.manifest)) is not None]
        wanted = {record.digest: record for record in (*bases, *records)}
        pin.add(wanted)
        ready = [self.residency.served(record.name, record.version) for record in records]
        if all(ready):  # a rollback does not wait for the canary pass of a push
            return {head.name: head for head in ready if head is not None}
        if self._loading.locked():
            note("waiting for another load or canary pass")
        with self._loading:
            missing = [record for digest, record in wanted.items() if self.residency.live(digest) is None]
            num_bytes = sum(self._num_bytes(record.manifest, record.num_bytes) for record in missing)
            with self.residency.room_for(num_bytes + self._loading_bytes(missing), pin):
                built: dict[str, LiveHead] = {}
                if missing:
                    what = ", ".join(f"{record.name}@{record.version}" for record in missing)
                    note(f"loading {what}: {num_bytes >> 20} MiB")
                served_bases = [self._serve(base, built) for base in bases]
                heads = {record.name: self._serve(record, built) for record in records}
            for head in served_bases:  # all or none: a failure above leaves nothing behind
                self.residency.add(head)
            return {name: self.residency.add(head) for name, head in heads.items()}

    def try_out(self, digest: str, name: str, manifest: HeadManifest, file: HeadFile, pin: Pin) -> LiveHead:
        """Build a head that is not stored yet and run it once: the weights, if all is well. The caller keeps them or not.

        The base of a LoRA head is loaded as any stored version is; what is in memory already stays while `pin` lasts.
        """
        self.loader.check(file, manifest)
        pin.add({digest})
        built: dict[str, LiveHead] = {}
        if (base := self._base(manifest)) is not None:
            built[base.digest] = self.load([base], pin)[base.name].live
        with self._loading:
            live = self.residency.live(digest)
            num_bytes = 0 if live is not None else self._num_bytes(manifest, file.header.file_bytes)
            more = self.loader.num_loading_bytes(manifest.output) if num_bytes and manifest.lora is None else 0
            with self.residency.room_for(num_bytes + more, pin):
                live = live or self._build(digest, manifest, file, built)
                self._engine.warm_up(ServedHead(name, 0, manifest, live))
                self.residency.watch(live)
        return live

    def _serve(self, record: VersionRecord, built: dict[str, LiveHead]) -> ServedHead:
        if known := self.residency.served(record.name, record.version):
            return known
        self._trunk.check_trunk(record.manifest.trunk_id)
        served = ServedHead(record.name, record.version, record.manifest, self._weights(record, built))
        self._engine.warm_up(served)
        return served

    def _weights(self, record: VersionRecord, built: dict[str, LiveHead]) -> LiveHead:
        live = self.residency.live(record.digest) or built.get(record.digest)
        if live is None:
            file = self.loader.open(self._store.read_blob(record.blob))
            self.loader.check(file, record.manifest)
            live = built[record.digest] = self._build(record.digest, record.manifest, file, built)
        return live

    def _build(self, digest: str, manifest: HeadManifest, file: HeadFile, built: dict[str, LiveHead]) -> LiveHead:
        base = self._base(manifest)
        if base is None or manifest.lora is None:
            return self.loader.build(digest, file, manifest.output)
        return self.loader.build_adapted(digest, file, manifest.lora, self._weights(base, built))

    def _base(self, manifest: HeadManifest) -> VersionRecord | None:
        """What a LoRA head is built on."""
        return None if manifest.lora is None else self._store.get(*manifest.base_version())

    def _loading_bytes(self, missing: list[VersionRecord]) -> int:
        """The most that one of them takes beyond its own size while it is loaded: they are loaded one by one."""
        outputs = (record.manifest.output for record in missing if record.manifest.lora is None)
        return max(map(self.loader.num_loading_bytes, outputs), default=0)

    def _num_bytes(self, manifest: HeadManifest, file_bytes: int) -> int:
        return self.loader.num_bytes(manifest.output) if manifest.lora is None else self.loader.num_adapter_bytes(file_bytes)
