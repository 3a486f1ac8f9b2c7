"""From an uploaded file to a new version: every check, then the store. Knows no wire and changes no active set."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping

from polyhead.heads.format.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from polyhead.heads.format.manifest import HeadManifest, check_name, parse_reference
from polyhead.heads.format.pauses import pause_point
from polyhead.heads.store.store import HeadStore, Staging, VersionRecord
from polyhead.server.engine.work.live import ActiveSet, ServedHead
from polyhead.server.versions.head_cache import HeadCache
from polyhead.server.versions.manifests import ManifestPatch, ServedTrunk
from polyhead.server.versions.push_manifests import PushManifests
from polyhead.server.versions.push_requests import CopyRequest, Delta, DeltaBase, Published, PushRequest
from polyhead.server.versions.residency import Pin

MAX_PUSHES = 4  # at once, each with a staging file

log = logging.getLogger(__name__)


class Publisher:
    """Methods block; call them from a worker thread. Several pushes may run at once."""

    def __init__(
        self,
        store: HeadStore,
        trunk: ServedTrunk,
        cache: HeadCache,
        source_sha256: Callable[[str], str | None],
        active: Callable[[], ActiveSet],
    ) -> None:
        self._store = store
        self._trunk = trunk
        self._cache = cache
        self._source_sha256 = source_sha256  # a trunk tensor's name in the checkpoint -> its hash, None if unknown
        self._active = active
        self._manifests = PushManifests(store, trunk, active)

    def take(self, staging: Staging, data: bytearray) -> None:
        """Store the next bytes of a file that is being received."""
        staging.write(data)
        pause_point(len(data))

    def check_served(self, request: PushRequest) -> None:
        """Refuse a head that this server does not serve, before a byte of it is stored."""
        self._cache.loader.check_served(request.name, request.manifest.lora)

    def check_size(self, num_bytes: int, field: str) -> None:
        """Refuse a file that no head of this model can fill, before a byte of it is stored."""
        most = self._cache.loader.max_file_bytes
        if num_bytes > most:
            raise ResourceExhausted(f"a head of this model has at most {most} bytes: {num_bytes}", field=field)

    def answered(self, request: PushRequest, sha256: str) -> VersionRecord | None:
        """The version that this push of this file made before. AlreadyExists if the id was used for another one.

        `sha256` is the whole file's; empty for a delta whose pusher does not know it.
        """
        self._store.check_request(request.request_id, request.request_digest)
        first = self._store.version_of_request(request.request_id) if request.request_id else None
        if first is None or (first.request_digest and request.request_digest):  # which are equal, or would have been refused
            return first
        known = (first.blob, sha256) if sha256 or request.delta is None else (first.sent_sha256, request.delta.sha256)
        if (first.name, first.manifest.lora) != (request.name, request.manifest.lora) or known[0] != known[1]:
            raise AlreadyExists(
                f"the request id was used for another push: it made {first.name}@{first.version}", field="header.request_id"
            )
        return first

    def open_base(self, delta: Delta, manifest: ManifestPatch) -> DeltaBase:
        """What the delta is applied to, held open until the caller closes it. Every refusal that needs no bytes of the delta."""
        field = "header.delta_base"
        if manifest.lora is not None:
            raise InvalidArgument("an adapter is pushed whole: leave delta_base out", field=field)
        name, version = parse_reference(delta.base, field)
        if not version:
            raise InvalidArgument(f"delta_base must name a version: {delta.base!r}", field=field)
        record = self._manifests.version(name, version, field)
        if record.manifest.lora is not None:
            hint = f"its file holds an adapter; the weights under it are {record.manifest.base}"
            raise FailedPrecondition(f"delta_base is a LoRA head: {delta.base}\nhint: {hint}", field=field)
        if manifest.output not in (None, record.manifest.output):
            theirs = record.manifest.output.value
            problem = f"delta_base has another output than the push says: {theirs!r}\nhint: push the whole head"
            raise FailedPrecondition(problem, field=field)
        return DeltaBase(record, self._store.open_blob(record.blob))

    def publish(self, staging: Staging, request: PushRequest, base: DeltaBase | None = None) -> Published:
        """Check a staged file and make it a version. Leaves nothing behind if any check fails."""
        with staging, self._cache.residency.pinning() as pin:
            staging.verify()
            if request.delta is None or base is None:
                return self._publish_whole(staging, request, None, pin)
            delta = request.delta
            declared = (delta.whole_num_bytes, delta.whole_sha256)
            with self._store.rebuild(base.file, staging, *declared) as whole:
                return self._publish_whole(whole, request, base.record, pin)

    def _publish_whole(self, staging: Staging, request: PushRequest, base: VersionRecord | None, pin: Pin) -> Published:
        sha256 = staging.verify()
        num_compared = self._compare_trunk(request.trunk_sha256)
        if first := self.answered(request, sha256):
            return Published(first, num_compared)
        if not request.is_dry_run:
            staging.begin_sync()
        file = self._cache.loader.open(staging.read())
        manifest = self._manifests.complete(request, file.names, base)
        digest = self._store.digest_of(sha256, manifest)
        self._warn_of_precision(request.name, manifest)
        live = self._cache.try_out(digest, request.name, manifest, file, pin)
        if request.is_dry_run:
            return Published(_unstored(request, digest, sha256, manifest, staging.num_bytes), num_compared)
        record = self._store_version(staging, request, manifest)
        self._cache.residency.add(ServedHead(record.name, record.version, record.manifest, live))
        return Published(record, num_compared)

    def same_file_as(self, record: VersionRecord) -> str:
        """The newest other version with the same bytes, of the same name if there is one: "preference@2"; empty if there is none."""
        others: list[VersionRecord] = []
        for name in self._store.names():
            with contextlib.suppress(NotFound):  # its last version was deleted a moment ago
                others += [each for each in self._store.versions(name) if each.blob == record.blob]
        others = [each for each in others if (each.name, each.version) != (record.name, record.version)]
        twin = max(others, key=lambda each: (each.name == record.name, each.created_at), default=None)
        return f"{twin.name}@{twin.version}" if twin else ""

    def copy(self, request: CopyRequest) -> VersionRecord:
        """A new version without bytes."""
        check_name(request.target, "target")
        self._store.check_request(request.request_id, request.request_digest)
        first = self._store.version_of_request(request.request_id) if request.request_id else None
        if first is not None and first.request_digest and request.request_digest:
            return first  # also when its source is gone
        source = self._source(request.source)
        changed = {
            name: value
            for name in ("kind", "bias", "scale", "read", "append_token_id", "pad_token_id", "unfinished")
            if (value := getattr(request, name)) is not None
        }
        base = source.manifest.base if source.manifest.lora else f"{source.name}@{source.version}"
        manifest = dataclasses.replace(source.manifest, base=base, **changed)
        manifest = self._trunk.check(self._trunk.with_rule_defaults(manifest))
        if first is not None:
            if (first.name, first.digest) != (request.target, source.digest):
                raise AlreadyExists(f"the request id was used before: it made {first.name}@{first.version}", field="request_id")
            return first
        return self._store.add_version(
            request.target,
            source.blob,
            manifest,
            labels=request.labels,
            request_id=request.request_id,
            request_digest=request.request_digest,
        )

    def _source(self, reference: str) -> VersionRecord:
        name, version = parse_reference(reference, "source")
        active = self._active().heads.get(name)
        try:
            if not version and active is None:
                raise NotFound("not active")
            return self._store.get(name, version or (active.version if active else 0))
        except NotFound:
            what = "version" if version else "active head"
            raise NotFound(f"no such {what}: {reference}", field="source", metadata={"name": reference}) from None

    def _compare_trunk(self, hashes: Mapping[str, str]) -> int:
        """Refuse a push whose trainer has changed the trunk. How many tensors were compared."""
        for name, digest in hashes.items():
            served = self._source_sha256(name)
            if served is None:
                raise InvalidArgument(f"not a tensor of the trunk: {name[:120]!r}", field="header.trunk_sha256")
            if digest.lower() != served:
                raise FailedPrecondition(
                    f"the trainer's trunk differs from the served one, at tensor {name!r}\n"
                    "hint: freeze the layers below the split before training",
                    field=f"header.trunk_sha256[{name}]",
                )
        return len(hashes)

    def _warn_of_precision(self, name: str, manifest: HeadManifest) -> None:
        if manifest.precision != self._trunk.precision:
            log.warning("%s was trained on a %s trunk and is served on a %s one", name, manifest.precision, self._trunk.precision)

    def _store_version(self, staging: Staging, request: PushRequest, manifest: HeadManifest) -> VersionRecord:
        digest = staging.finish()
        try:
            return self._store.add_version(
                request.name,
                digest,
                manifest,
                labels=request.labels,
                request_id=request.request_id,
                request_digest=request.request_digest,
                metrics=request.metrics,
                sent_sha256=request.delta.sha256 if request.delta is not None and not request.delta.whole_sha256 else "",
            )
        except BaseException:
            self._store.discard_blob(digest)
            raise


def _unstored(request: PushRequest, digest: str, sha256: str, manifest: HeadManifest, num_bytes: int) -> VersionRecord:
    return VersionRecord(
        name=request.name,
        version=0,
        digest=digest,
        num_bytes=num_bytes,
        manifest=manifest,
        created_at=0.0,
        labels=request.labels,
        metrics=request.metrics,
        adapter_sha256=sha256 if manifest.lora is not None else "",
    )
