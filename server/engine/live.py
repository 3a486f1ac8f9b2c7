"""Heads as the engine sees them: weights in memory, the names they serve under, and the set that new requests take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from polyhead.heads.family import HeadModule
from polyhead.heads.manifest import HeadManifest
from polyhead.server.engine.fast import FastHead


@dataclass(eq=False, slots=True)
class LiveHead:
    """One head file's weights in memory. Versions with the same file share it."""

    digest: str  # SHA-256 of the file: the key of everything cached for this head
    module: HeadModule | FastHead
    num_bytes: int  # of its own weights; a tied output counts nothing
    num_leases: int = 0  # running requests that hold it; written by the engine thread alone


@dataclass(frozen=True, slots=True)
class ServedHead:
    """One version of one name, ready to run."""

    name: str
    version: int
    manifest: HeadManifest
    live: LiveHead

    @property
    def reference(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, eq=False, slots=True)
class ActiveSet:
    """What new requests use: changes as a whole."""

    generation: int
    heads: Mapping[str, ServedHead] = field(default_factory=dict)
