"""Heads of a server of several ranks: rank 0 reads a file, keeps its own share of each tensor and hands the others theirs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from polyhead.heads.format.errors import FailedPrecondition
from polyhead.heads.format.kinds import OutputKind
from polyhead.heads.format.lora import LoraAdapter
from polyhead.heads.format.manifest import HeadManifest
from polyhead.heads.model.spec import ModelSpec
from polyhead.server.engine.work.live import LiveHead
from polyhead.server.parallel.lead import LeadingHeads
from polyhead.server.parallel.shares import Share
from polyhead.server.versions.head_loader import HeadFile, HeadLoader


class Holders(Protocol):
    """The other ranks, as weights see them: ranks.py."""

    @property
    def size(self) -> int: ...

    def hold(self, number: int, names: list[str], part: Callable[[Share, str], Tensor], /) -> None:
        """Each rank builds a head of its parts of these tensors, known by `number` from now on. PolyheadError if one cannot."""
        ...


class SharingLoader(HeadLoader):
    """As HeadLoader. Sizes are those of rank 0's share, which is the largest: it has the output."""

    def __init__(
        self,
        spec: ModelSpec,
        share: ModelSpec,
        heads: LeadingHeads,
        holders: Holders,
        dtype: torch.dtype,
        output_dtype: torch.dtype | None,
    ) -> None:
        """`spec`: of the whole model, whose heads the files hold. `share`: of one rank's."""
        tied: nn.Parameter | None = heads.tied_embedding
        super().__init__(share, tied, dtype, heads.device, heads.prepare, heads.weight_bytes, output_dtype, heads.uploads)
        self._whole = HeadLoader(spec, tied, dtype, heads.device, heads.prepare)
        self._heads, self._holders = heads, holders
        self._numbers = itertools.count(1)

    @property
    def max_file_bytes(self) -> int:
        return self._whole.max_file_bytes

    def check_served(self, reference: str, lora: LoraAdapter | None) -> None:
        if lora is not None:
            raise FailedPrecondition(
                f"LoRA heads are not served by several ranks: {reference}\n"
                "hint: merge the adapter into its base and push the whole head, or serve without --tensor-parallel",
                field="header.manifest.lora",
            )

    def check(self, file: HeadFile, manifest: HeadManifest) -> None:
        self._whole.check(file, manifest)

    def build(self, digest: str, file: HeadFile, output: OutputKind) -> LiveHead:
        """On all ranks, beside their passes."""
        number = next(self._numbers)
        inner = [name for name in file.tensors if name in self._inner]
        try:
            self._holders.hold(number, inner, lambda share, name: share.of(name, file.tensors[name]))
            own = Share(0, self._holders.size)
            live = super().build(digest, _cut(file, own), output)
        except BaseException:
            self._heads.others.forget(number)
            raise
        self._heads.number(live.module, number)
        return live

    @property
    def _inner(self) -> frozenset[str]:
        """What the other ranks hold: layers, and the final norm."""
        return frozenset(self.spec.head_names)


def _cut(file: HeadFile, share: Share) -> HeadFile:
    tensors: Mapping[str, Tensor] = {name: share.of(name, tensor) for name, tensor in file.tensors.items()}
    return HeadFile(file.header, tensors)
