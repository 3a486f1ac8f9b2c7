"""What is asked of the publisher and what it answers: pushes, whole or as a difference, and copies. Fields are well-formed already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from polyhead.heads.format.kinds import HeadKind, ReadPosition, Unfinished
from polyhead.heads.store.store import OpenBlob, VersionRecord
from polyhead.server.versions.manifests import ManifestPatch


@dataclass(frozen=True, slots=True)
class Delta:
    """A push that sends only what differs from a stored version."""

    base: str  # "policy@3"
    num_bytes: int  # of the file that is sent
    sha256: str
    whole_num_bytes: int = 0  # of the file after the change; 0 and "" if the pusher does not hold all of it
    whole_sha256: str = ""


@dataclass(frozen=True, slots=True)
class PushRequest:
    """The header of a push, its fields already well-formed."""

    name: str
    manifest: ManifestPatch = field(default_factory=ManifestPatch)
    request_id: str = ""
    request_digest: str = ""  # of the header
    is_dry_run: bool = False  # validate_only
    trunk_sha256: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    delta: Delta | None = None  # None: the whole file is sent


@dataclass(frozen=True, slots=True)
class DeltaBase:
    """What a delta is applied to: its file is held open, so that the version may be deleted meanwhile."""

    record: VersionRecord
    file: OpenBlob

    def __enter__(self) -> DeltaBase:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """A new version of the same weights; None keeps the source's."""

    source: str
    target: str
    kind: HeadKind | None = None
    bias: float | None = None
    scale: float | None = None
    read: ReadPosition | None = None
    append_token_id: int | None = None
    pad_token_id: int | None = None
    unfinished: Unfinished | None = None
    request_id: str = ""
    request_digest: str = ""
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """A new version, or with a dry run what it would have been: version 0."""

    record: VersionRecord
    num_trunk_tensors_compared: int
