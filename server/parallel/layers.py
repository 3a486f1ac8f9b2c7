"""Layers of one rank's share: torch's products (../engine/layers/torch), with a sum over ranks behind o and behind down."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from polyhead.server.engine.build import EngineConfig, torch_kit
from polyhead.server.engine.layers.kits import Kit, OutputApart, TorchKit
from polyhead.server.engine.layers.linears import Linear
from polyhead.server.engine.layers.llama import LayerParts
from polyhead.server.engine.layers.torch.stack import TorchLayer


class Sums(Protocol):
    """What joins the ranks: group.py."""

    def sum(self, x: Tensor, /) -> Tensor:
        """The sum of all ranks' x, on each of them; x is overwritten. All ranks call it, in the same order."""
        ...


class SummedLinear:
    """A product over a share of the inputs; the ranks' parts are added up."""

    __slots__ = ("_part", "_sums", "num_bytes")
    adds_for_free = False

    def __init__(self, part: Linear, sums: Sums) -> None:
        self._part, self._sums, self.num_bytes = part, sums, part.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        return self._sums.sum(self._part(x_TI))

    def add_to(self, x_TI: Tensor, other_TO: Tensor) -> Tensor:
        return self(x_TI).add_(other_TO)


@dataclass(frozen=True, slots=True)
class ShareKit(TorchKit):
    """torch's own calls, and the sums."""

    sums: Sums = field(kw_only=True)

    def layer(self, parts: LayerParts) -> TorchLayer:
        layer = TorchLayer(parts, self.linears, self.fused)
        layer.out, layer.down = SummedLinear(layer.out, self.sums), SummedLinear(layer.down, self.sums)
        return layer


def share_kit(config: EngineConfig, device: torch.device, dtype: torch.dtype, sums: Sums) -> Kit:
    """Layers in this dtype, and outputs as the configuration wants them."""
    whole = torch_kit("none", device, dtype)
    kit = ShareKit(whole.linears, whole.fused, sums=sums)
    if config.output is None:
        return kit
    return OutputApart(kit, torch_kit("none", device, config.output.dtype), config.output.dtype)
