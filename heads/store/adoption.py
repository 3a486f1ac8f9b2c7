"""Records of another store, taken over as they are: what a follower writes. Numbers, digests and the chain stay the primary's.

A version is durable before a generation that names it, so that a crash at any moment leaves some past generation of the primary.
"""

from __future__ import annotations

from polyhead.heads.format.errors import DataLoss, FailedPrecondition
from polyhead.heads.format.manifest import parse_reference
from polyhead.heads.store import layout, records
from polyhead.heads.store.head_versions import HeadVersions
from polyhead.heads.store.records import GenerationRecord, VersionRecord


class Adoption(HeadVersions):
    """Versions and generations that have their numbers already."""

    def is_usable(self, record: VersionRecord) -> bool:
        """Whether nothing is known that would keep a version from being loaded: the primary sends one again that is damaged."""
        with self._guard("could not look at the head version"):
            return not self._inspector.find_problem(record.name, record.version)

    def is_blob_held(self, digest: str, num_bytes: int) -> bool:
        """Whether a version has these bytes already, undamaged as far as is known: another one of the same bytes needs no pull."""
        layout.blob_path(digest)
        return self._blobs.is_held(digest) and self._blobs.is_whole(digest, num_bytes)

    def adopt_version(self, record: VersionRecord) -> list[VersionRecord]:
        """Hold a version, whose blob is finished or held; also the same one with other labels. Durable when it returns.

        Other weights that this store has under the number go, and what is built on them, unless a generation names them: what went.
        FailedPrecondition if one does, for another trunk's head, and for a digest that does not follow from the blob.
        """
        reference = f"{record.name}@{record.version}"
        if record.manifest.trunk_id != self.trunk_id:
            raise FailedPrecondition(f"{reference} belongs to another trunk: {record.manifest.trunk_id[:12]}...")
        layout.version_path(record.name, record.version)
        with self._guard("could not store the head version"):
            known = next((each for each in self._versions_of(record.name) if each.version == record.version), None)
            if known is not None and known.digest == record.digest:
                self._versions.exchange(known, record)
                self._blobs.give_up(record.blob)  # pulled again for a damaged one, perhaps: the version has taken it before
                return []
            if self._digest_of(record.blob, record.manifest) != record.digest:
                raise FailedPrecondition(f"the digest of {reference} does not follow from its file and base: {record.digest[:12]}...")
            if self._held_bytes(record.blob) != record.num_bytes:
                raise DataLoss(f"the file of {reference} has another size than its record says: {record.num_bytes} bytes")
            if known is not None:
                return self._replace(known, record)
            self._versions.adopt(record)
            self._blobs.take(record.blob)
            return []

    def _replace(self, known: VersionRecord, record: VersionRecord) -> list[VersionRecord]:
        """What an old primary had acknowledged and nobody has copied gives way, unless it was active."""
        built_on = [self._versions.get(*parse_reference(each, "base")) for each in self._versions.built_on(known.name, known.version)]
        for each in (known, *built_on):
            if any(generation.heads.get(each.name) == each.version for generation in self._generations.history()):
                problem = f"{known.name}@{known.version} holds other weights here: digest {known.digest[:12]}, not {record.digest[:12]}"
                hint = "stop this server, move its store folder away and start it again: it copies the primary's"
                raise FailedPrecondition(f"{problem}\nhint: {hint}")
        for each in built_on:
            self._versions.delete(each.name, each.version)
            self._blobs.release(each.blob)
        self._versions.exchange(known, record)
        self._blobs.take(record.blob)
        self._blobs.release(known.blob)
        return [known, *built_on]

    def adopt_spent(self, name: str, version: int) -> None:
        """A number that was given out and whose version is deleted: it is never used again. Durable when it returns."""
        layout.version_path(name, version)
        with self._guard("could not store the last version number"):
            self._versions.spend(name, version)

    def _versions_of(self, name: str) -> list[VersionRecord]:
        return self._versions.of(name) if name in self._versions.names() else []

    def adopt_generation(self, record: GenerationRecord) -> None:
        """Make a generation of the primary the active set, or keep the record of a past one. As `commit_generation`."""
        with self._guard("could not store the generation"):
            if record.number <= self._generations.highest:
                self._generations.fill_in(record)
                return
            self._refuse_while_damaged()
            for head in record.heads.items():
                self._versions.get(*head)
                if problem := self._inspector.find_problem(*head, is_thorough=True):
                    raise DataLoss(f"cannot be activated: {problem}")
            self._generations.commit(record)

    def history_id(self, number: int) -> str:
        """Of a generation that this store holds; "" if neither it nor its hash is kept."""
        with self._lock:
            return self._generations.sha256_of(number)[: records.HISTORY_ID_CHARS]
