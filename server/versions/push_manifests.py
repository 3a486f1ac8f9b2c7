"""What a push leaves unsaid in its manifest is taken from its base, from the active version of its name, or from the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

from polyhead.heads.format.errors import InvalidArgument, NotFound
from polyhead.heads.format.manifest import HeadManifest, parse_reference
from polyhead.heads.store.store import HeadStore, VersionRecord
from polyhead.server.engine.work.live import ActiveSet
from polyhead.server.versions.manifests import ServedTrunk
from polyhead.server.versions.push_requests import PushRequest


class PushManifests:
    """Completes manifests. Methods read the store: call them from a worker thread."""

    def __init__(self, store: HeadStore, trunk: ServedTrunk, active: Callable[[], ActiveSet]) -> None:
        self._store = store
        self._trunk = trunk
        self._active = active

    def complete(self, request: PushRequest, names: Collection[str], delta_base: VersionRecord | None) -> HeadManifest:
        if delta_base is not None:
            reference = f"{delta_base.name}@{delta_base.version}"
            if request.manifest.base in (None, reference):  # which may have been deleted meanwhile
                patch = dataclasses.replace(request.manifest, base=reference)
                return self._trunk.complete(patch, delta_base.manifest, names)
        if request.manifest.lora is None:
            return self._trunk.complete(request.manifest, self._before(request), names)
        base = self._lora_base(request)
        patch = dataclasses.replace(request.manifest, base=f"{base.name}@{base.version}")
        return self._trunk.complete(patch, base.manifest, names)

    def _lora_base(self, request: PushRequest) -> VersionRecord:
        """What an adapter stands on: the version that the push names, or the active one of a name, by default of its own.

        If that one is a LoRA head and no version was named: what it stands on, so that a trainer pushes one round after another.
        """
        name, version = parse_reference(request.manifest.base or request.name, "header.manifest.base")
        if version:
            return self.version(name, version)
        active = self._active().heads.get(name)
        if active is None:
            hint = 'name the version that it was trained on: base="policy@3"'
            raise InvalidArgument(f"no active head to build on: {name!r}\nhint: {hint}", field="header.manifest.base")
        if active.manifest.lora is not None:
            return self.version(*active.manifest.base_version())
        return self.version(name, active.version)

    def _before(self, request: PushRequest) -> HeadManifest | None:
        """Where unset fields come from: the base, or else the active version of the same name."""
        if request.manifest.base:
            name, version = parse_reference(request.manifest.base, "header.manifest.base")
            if not version:
                raise InvalidArgument(f"base must name a version: {request.manifest.base!r}", field="header.manifest.base")
            return self.version(name, version).manifest
        active = self._active().heads.get(request.name)
        return active.manifest if active else None

    def version(self, name: str, version: int, field: str = "header.manifest.base") -> VersionRecord:
        try:
            return self._store.get(name, version)
        except NotFound as error:
            raise NotFound(error.message, field=field, metadata={"name": f"{name}@{version}"}) from None
