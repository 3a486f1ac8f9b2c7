"""Stored versions after their push: labels, deletion, and room on the disk. Changes no active set."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from polyhead.heads.format.errors import InvalidArgument, NotFound, ResourceExhausted
from polyhead.heads.format.manifest import parse_reference
from polyhead.heads.store.io_errors import FULL_HINT
from polyhead.heads.store.store import HeadStore, VersionRecord
from polyhead.server.host.memory import return_freed_pages
from polyhead.server.versions.head_cache import HeadCache
from polyhead.server.versions.lookup import HeadLookup


class Upkeep(HeadLookup):
    """Labels and deletes versions, by name or because newer ones take their place."""

    def __init__(self, store: HeadStore, cache: HeadCache, keep_versions: int) -> None:
        super().__init__(store, cache)
        self._keep_versions = keep_versions

    def label(
        self, reference: str, *, add: Collection[str], remove: Collection[str], request_id: str = "", request_digest: str = ""
    ) -> VersionRecord:
        """Change the labels of "policy" (the active version) or "policy@7". A repeated request id changes nothing again."""
        if not add and not remove:
            raise InvalidArgument("name labels to add or to remove", field="add")
        if both := set(add) & set(remove):
            raise InvalidArgument(f"a label cannot be added and removed in one call: {min(both)!r}", field="remove")
        self.store.check_request(request_id, request_digest)
        record = self.get(reference, "head").record
        return self.store.label(record.name, record.version, add=add, remove=remove, request_id=request_id, request_digest=request_digest)

    def delete(self, reference: str, field: str) -> None:
        """Forget a version that is neither active, nor next in a rollback, nor labelled."""
        name, version = parse_reference(reference, field)
        if version == 0:
            raise InvalidArgument(f"name the version to delete, as in {name}@1: {reference!r}", field=field)
        try:
            self.store.delete_version(name, version)
        except NotFound as error:
            raise NotFound(error.message, field=field, metadata={"name": reference}) from None
        self.residency.forget(name, version)

    def check_disk(self, num_bytes: int, field: str, *, may_collect: bool = True) -> None:
        """Before so many bytes are stored: what may be collected makes way for them. ResourceExhausted if they cannot fit all the same.

        A follower collects nothing: what it holds is for its primary to say, which would go on counting on it.
        """
        free, _ = self.store.disk_space()
        if free < num_bytes and may_collect:
            self.collect()
            free, _ = self.store.disk_space()
        if free < num_bytes:
            problem = f"the store's disk has no room for this head: {num_bytes} bytes needed, {free} free"
            raise ResourceExhausted(f"{problem}\nhint: {FULL_HINT}", field=field)

    def collect(self, also_keep: Collection[tuple[str, int]] = ()) -> list[str]:
        """Delete what `keep_versions` no longer keeps, and let idle weights go; what was deleted. After each push and activation."""
        deleted = self.store.collect(self._keep_versions, also_keep)
        with contextlib.suppress(ResourceExhausted):  # a full disk: the history is packed another time
            self.store.compact()
        for record in deleted:
            self.residency.forget(record.name, record.version)
        self.residency.trim()
        return_freed_pages()
        return [f"{record.name}@{record.version}" for record in deleted]
