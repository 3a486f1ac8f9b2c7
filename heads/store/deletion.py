"""Which versions may go, and their deletion. What is active, what a rollback would serve and what LoRA heads are built on stays."""

from __future__ import annotations

from collections.abc import Collection

from polyhead.heads.format.errors import FailedPrecondition, InvalidArgument
from polyhead.heads.store import layout
from polyhead.heads.store.parts import StoreParts
from polyhead.heads.store.records import GenerationRecord, VersionRecord


class Deletion(StoreParts):
    """Deletes versions of a store, one by name or all that need not be kept."""

    def delete_version(self, name: str, version: int, *, force: bool = False) -> None:
        """Delete a version, and its blob after the last version that refers to it. Its number is never used again.

        FailedPrecondition if it is active or a LoRA head is built on it; without `force` also if it is labelled or in the
        generation before. NotFound.
        """
        with self._guard("could not delete the head version"):
            self._refuse_while_damaged()
            layout.version_path(name, version)
            if (name, version) not in self._versions.damaged:
                self._versions.get(name, version)
            if reason := self._kept_because(name, version, is_forced=force):
                raise FailedPrecondition(f"{name}@{version} cannot be deleted: it is {reason}")
            self._delete(name, version)
            self._write_reserve()
            self.other_damage = tuple(self._inspector.find_other_damage())

    def collect(self, keep_versions: int, also_keep: Collection[tuple[str, int]] = ()) -> list[VersionRecord]:
        """Delete all but the newest `keep_versions` of each name; what was deleted.

        Active versions, those of the generation before, labelled ones and those in `also_keep` stay, too. FailedPrecondition while
        `damage` is set.
        """
        if isinstance(keep_versions, bool) or not isinstance(keep_versions, int) or keep_versions < 1:
            raise InvalidArgument(f"keep_versions must be at least 1: {keep_versions}", field="keep_versions")
        with self._guard("could not delete old head versions"):
            self._refuse_while_damaged()
            old = [record for name in self._versions.names() for record in self._versions.of(name)[:-keep_versions]]
            free = [record for record in old if (record.name, record.version) not in also_keep]
            deleted = [record for record in free if not self._kept_because(record.name, record.version, is_forced=False)]
            for record in deleted:
                self._delete(record.name, record.version)
            self._write_reserve()
            if not self._versions.damaged:
                self._blobs.remove_orphans()
            return deleted

    def _kept_because(self, name: str, version: int, *, is_forced: bool) -> str:
        """Why a version has to stay; empty if it may go."""
        current = self._generations.current
        if current and current.heads.get(name) == version:
            return f"active in generation {current.number}"
        if dependants := self._versions.built_on(name, version):
            more = f" and {len(dependants) - 5} more" if len(dependants) > 5 else ""
            return f"what LoRA heads are built on: {', '.join(dependants[:5])}{more}"
        if is_forced or (name, version) in self._versions.damaged:
            return ""
        for generation in self._rollback_targets():
            if generation.heads.get(name) == version:
                return f"what a rollback to generation {generation.number} would serve"
        labels = self._versions.get(name, version).labels
        return f"labelled {labels[0]!r}\nhint: take its labels away first: {', '.join(labels)}" if labels else ""

    def _rollback_targets(self) -> list[GenerationRecord]:
        """The generation before the current one, and the parent, which a rollback goes to by default."""
        current = self._generations.current
        if current is None:
            return []
        found = (self._generations.before_current(), self._generations.find(current.parent))
        return [generation for generation in found if generation is not None]

    def _delete(self, name: str, version: int) -> None:
        blob = "" if (name, version) in self._versions.damaged else self._versions.get(name, version).blob
        self._versions.delete(name, version)
        if blob:
            self._blobs.release(blob)
