"""Heads in memory, the names they serve under, the active set, and the lease by which a request keeps one generation of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.model.adapted import Adapter, HeadGroup
from polyhead.heads.model.family import HeadModule
from polyhead.server.engine.layers.fast import FastHead, FastHeadGroup, FastLoraHead


@dataclass(eq=False, slots=True)
class LiveHead:
    """One head file's weights in memory. Versions with the same digest share it."""

    digest: str  # names what is computed: the key of everything cached for this head
    module: HeadModule | FastHead | FastLoraHead
    num_bytes: int  # of its own weights; a tied output counts nothing, nor does an adapter's base
    base: LiveHead | None = None  # of a LoRA head: whose weights it runs on, held in memory by it
    adapter: Adapter | None = None  # of a LoRA head
    group: HeadGroup | FastHeadGroup | None = None  # of a base: runs it and the adapters on it in one pass; made with the first adapter

    @property
    def weights(self) -> LiveHead:
        """Whose layers its tokens go through: heads of the same one run together."""
        return self if self.base is None else self.base


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
    """The versions that new requests use. It changes as a whole."""

    generation: int
    heads: Mapping[str, ServedHead] = field(default_factory=dict)
    history_id: str = ""  # names the generation and all before it


@dataclass(frozen=True, eq=False, slots=True)
class Lease:
    """The generation that a request took at first scheduling, for all its heads and samples."""

    generation: int
    heads: Mapping[str, ServedHead]  # by the caller's reference
    history_id: str = ""

    @property
    def live_heads(self) -> set[LiveHead]:
        return {head.live for head in self.heads.values()}
